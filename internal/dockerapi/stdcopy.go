package dockerapi

import (
	"encoding/binary"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// maxFrame is how much one frame carries: more of the same stream comes in further ones.
const maxFrame = 32 << 10

// A frameWriter puts what is written into docker's frames: the stream's number, three
// zero bytes, the length in 32 bits big-endian, the bytes. A frame is one Write to w.
type frameWriter struct {
	w      io.Writer
	stream stdcopy.StdType
	buf    []byte
}

// frames returns a writer of one stream's frames to w. It is not safe for concurrent
// use; two of them on one w are, if w is.
func frames(w io.Writer, stream stdcopy.StdType) io.Writer {
	return &frameWriter{w: w, stream: stream}
}

func (f *frameWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), maxFrame)]
		f.buf = append(f.buf[:0], byte(f.stream), 0, 0, 0, 0, 0, 0, 0)
		binary.BigEndian.PutUint32(f.buf[4:], uint32(len(part)))
		f.buf = append(f.buf, part...)
		if _, err := f.w.Write(f.buf); err != nil {
			return n, err
		}
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}
