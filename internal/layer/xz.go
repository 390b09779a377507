package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// xzGuard passes an xz file on to its decoder, and ends it with an error where
// a block wants a larger dictionary than maxWindow: the decoder would allocate
// whatever any block of any stream asks for. It follows the container's frames
// and unpacks nothing. What is malformed otherwise is the decoder's to report.
// Format: xz-file-format 1.2.0; chunks of LZMA2 are described in the XZ Embedded
// and liblzma sources (lzma2_decoder.c).
type xzGuard struct {
	r    *bufio.Reader
	next func() error // reads the next frame's head into head and sets pass
	head []byte       // of a frame, to be passed on first
	pass int64        // bytes to be passed on after it, unseen
	err  error

	check int64  // bytes of a block's checksum
	block int64  // bytes of the present block, for its padding
	left  uint64 // numbers left in the index
	index int64  // bytes of the present index, for its padding
}

func newXZGuard(r *bufio.Reader) *xzGuard {
	g := &xzGuard{r: r}
	g.next = g.streamHeader
	return g
}

// Read implements io.Reader.
func (g *xzGuard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(g.head) == 0 && g.pass == 0 {
		if g.err == nil {
			g.err = g.next()
		}
		if g.err != nil && g.err != io.EOF && g.err != io.ErrUnexpectedEOF {
			g.head = nil // the decoder must not see what it would act on
		}
		if g.err != nil && len(g.head) == 0 {
			return 0, g.err
		}
	}
	if len(g.head) > 0 {
		n := copy(p, g.head)
		g.head = g.head[n:]
		return n, nil
	}
	n, err := g.r.Read(p[:min(int64(len(p)), g.pass)])
	g.pass -= int64(n)
	return n, err
}

// take reads n more bytes of the frame's head.
func (g *xzGuard) take(n int) ([]byte, error) {
	start := len(g.head)
	g.head = append(g.head, make([]byte, n)...)
	m, err := io.ReadFull(g.r, g.head[start:])
	g.head = g.head[:start+m]
	return g.head[start:], err
}

var errXZ = errors.New("malformed container")

// streamHeader reads section 2.1.1, or four zero bytes of stream padding.
func (g *xzGuard) streamHeader() error {
	b, err := g.take(4)
	if err != nil || binary.LittleEndian.Uint32(b) == 0 {
		return err
	}
	if b, err = g.take(8); err != nil {
		return err
	}
	// Sizes of checks by their type, 2.1.1.2.
	g.check = [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[b[3]&0x0f]
	g.next = g.blockHeader
	return nil
}

// blockHeader reads section 3.1, or the start of the index instead.
func (g *xzGuard) blockHeader() error {
	b, err := g.take(1)
	if err != nil {
		return err
	}
	if b[0] == 0 {
		g.index = 1
		g.next = g.indexCount
		return nil
	}
	if b, err = g.take(int(b[0])*4 + 3); err != nil {
		return err
	}
	g.block = 0
	g.next = g.chunk
	return checkXZBlock(b)
}

// checkXZBlock looks at a block header, without its first byte, for the size
// of the dictionary (5.3.1).
func checkXZBlock(b []byte) error {
	flags, rest := b[0], b[1:]
	fields := 2 // filter id, size of its properties
	if flags&0x40 != 0 {
		fields++ // compressed size
	}
	if flags&0x80 != 0 {
		fields++ // uncompressed size
	}
	var id uint64
	for i := range fields {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return errXZ
		}
		rest = rest[n:]
		if i == fields-2 {
			id = v
		}
	}
	if flags&0x03 != 0 || id != 0x21 || len(rest) == 0 {
		return errors.New("filters other than LZMA2")
	}
	bits := rest[0] & 0x3f
	if bits > 40 {
		return errXZ
	}
	if size := uint64(2|bits&1) << (bits/2 + 11); size > maxWindow {
		return fmt.Errorf("dictionary of %d MiB, the limit is %d", size>>20, maxWindow>>20)
	}
	return nil
}

// chunk reads the head of one chunk of LZMA2.
func (g *xzGuard) chunk() error {
	b, err := g.take(1)
	if err != nil {
		return err
	}
	switch control := b[0]; {
	case control == 0:
		g.block++
		g.pass = -g.block&3 + g.check
		g.next = g.blockHeader
		return nil
	case control <= 2: // not compressed
		if b, err = g.take(2); err != nil {
			return err
		}
		g.pass = int64(binary.BigEndian.Uint16(b)) + 1
		g.block += 3 + g.pass
		return nil
	case control < 0x80:
		return errXZ
	default:
		if b, err = g.take(4); err != nil {
			return err
		}
		g.pass = int64(binary.BigEndian.Uint16(b[2:])) + 1
		if control >= 0xc0 {
			g.pass++ // new properties
		}
		g.block += 5 + g.pass
		return nil
	}
}

// indexCount reads the number of records of section 4.
func (g *xzGuard) indexCount() error {
	n, err := g.number()
	if n > 1<<62 {
		err = errors.Join(err, errXZ)
	}
	g.left = 2 * n
	g.next = g.indexNumber
	return err
}

// indexNumber reads one number of a record, or what follows the last: padding,
// a checksum and the stream's footer.
func (g *xzGuard) indexNumber() error {
	if g.left == 0 {
		g.pass = -g.index&3 + 4 + 12
		g.next = g.streamHeader
		return nil
	}
	g.left--
	_, err := g.number()
	return err
}

// number reads a multibyte integer of the index, section 1.2.
func (g *xzGuard) number() (uint64, error) {
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		b, err := g.take(1)
		if err != nil {
			return 0, err
		}
		g.index++
		if v |= uint64(b[0]&0x7f) << shift; b[0] < 0x80 {
			return v, nil
		}
	}
	return 0, errXZ
}
