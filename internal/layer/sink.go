package layer

import (
	"crypto/sha256"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

const (
	// chunkSize is what travels between the stages of a pipeline.
	chunkSize = 256 << 10
	// chunks bounds how far one stage runs ahead of the next.
	chunks = 4
)

// A sink hashes a stream and hands it on, in its own goroutine once there is
// more than one chunk: hashing overlaps with reading and writing files.
type sink struct {
	w    io.Writer // nil: only the digest is wanted
	hash hash.Hash
	size int64

	buf     []byte
	made    int
	free    chan []byte
	full    chan []byte
	done    chan struct{}
	err     error // the goroutine's, to be read after done
	running bool
}

func newSink(w io.Writer) *sink {
	if w == io.Discard {
		w = nil
	}
	return &sink{w: w, hash: sha256.New(), free: make(chan []byte, chunks), full: make(chan []byte, chunks), done: make(chan struct{})}
}

// space returns room for at least one byte at the end of the stream; what the
// caller put there counts after advance.
func (s *sink) space() []byte {
	if s.buf == nil {
		if s.made < chunks {
			size := chunkSize
			if s.made++; s.made == 1 { // most steps change little
				size = smallFile
			}
			s.buf = make([]byte, 0, size)
		} else {
			s.buf = <-s.free
		}
	}
	return s.buf[len(s.buf):cap(s.buf)]
}

// advance adds the first n bytes of space to the stream.
func (s *sink) advance(n int) {
	s.buf = s.buf[:len(s.buf)+n]
	s.size += int64(n)
	if len(s.buf) == cap(s.buf) {
		s.flush()
	}
}

// Write adds p to the stream. Errors of the writer behind come out of finish;
// failed says earlier that the rest is in vain.
func (s *sink) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		c := copy(s.space(), p)
		s.advance(c)
		p = p[c:]
	}
	return n, nil
}

func (s *sink) flush() {
	if !s.running {
		s.running = true
		go s.run()
	}
	s.full <- s.buf
	s.buf = nil
}

func (s *sink) run() {
	defer close(s.done)
	for b := range s.full {
		s.consume(b)
		s.free <- b[:0]
	}
}

func (s *sink) consume(b []byte) {
	if s.err != nil {
		return
	}
	s.hash.Write(b)
	if s.w != nil {
		_, s.err = s.w.Write(b)
	}
}

// finish waits until everything is hashed and written.
func (s *sink) finish() (oci.Digest, int64, error) {
	close(s.full)
	if s.running {
		<-s.done
	}
	if len(s.buf) > 0 {
		s.consume(s.buf)
	}
	return digest.NewDigest(digest.SHA256, s.hash), s.size, s.err
}
