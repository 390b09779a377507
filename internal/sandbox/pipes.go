package sandbox

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pipes connect den with the holder and the payload on its way to exec.
type pipes struct {
	// The other side's ends, closed after the start.
	progress, sync, tty, control, status *os.File
	// den's ends.
	fromPayload, toPayload, ttyOwn, toHolder, fromHolder *os.File
}

func newPipes(terminal bool) (_ *pipes, err error) {
	p := &pipes{}
	defer func() {
		if err != nil {
			p.closeChild()
			p.closeOwn()
		}
	}()
	if p.fromPayload, p.progress, err = newPipe(true); err != nil {
		return nil, err
	}
	if p.toPayload, p.sync, err = newPipe(false); err != nil {
		return nil, err
	}
	if p.toHolder, p.control, err = newPipe(false); err != nil {
		return nil, err
	}
	if p.fromHolder, p.status, err = newPipe(true); err != nil {
		return nil, err
	}
	if !terminal {
		return p, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	p.ttyOwn, p.tty = os.NewFile(uintptr(fds[0]), "tty socket"), os.NewFile(uintptr(fds[1]), "tty socket")
	return p, nil
}

func (p *pipes) closeChild() {
	for _, f := range []*os.File{p.progress, p.sync, p.tty, p.control, p.status} {
		if f != nil {
			f.Close()
		}
	}
}

func (p *pipes) closeOwn() {
	for _, f := range []*os.File{p.fromPayload, p.toPayload, p.ttyOwn, p.toHolder, p.fromHolder} {
		if f != nil {
			f.Close()
		}
	}
}

// readRecord reads two words.
func readRecord(r io.Reader) (a, b uint64, err error) {
	var buf [recordLength]byte
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint64(buf[:]), binary.LittleEndian.Uint64(buf[8:]), nil
}
