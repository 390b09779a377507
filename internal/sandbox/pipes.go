package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pipes connect den with the holder and the payload on its way to exec.
type pipes struct {
	// The other side's ends, closed after the start.
	progress, sync, send, control, status *os.File
	// den's ends.
	fromPayload, toPayload, received, toHolder, fromHolder *os.File
}

// newPipes makes the pipes; those to a detached holder are in d's directory.
func newPipes(d *detached) (_ *pipes, err error) {
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
	if d != nil {
		err = d.connect(p)
	} else if p.toHolder, p.control, err = newPipe(false); err == nil {
		p.fromHolder, p.status, err = newPipe(true)
	}
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	p.received, p.send = os.NewFile(uintptr(fds[0]), "descriptor socket"), os.NewFile(uintptr(fds[1]), "descriptor socket")
	return p, nil
}

// receive takes the next descriptor that the payload has sent; nil if it died on the way.
func (p *pipes) receive(name string) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(p.received.Fd()), make([]byte, 1), oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // how it ended says its exit
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%s: no descriptor: %w", name, errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%s: no descriptor: %w", name, errors.Join(err, unix.EBADMSG))
	}
	if name == terminalName { // read from with deadlines; a root directory knows none
		if err := unix.SetNonblock(fds[0], true); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, err), unix.Close(fds[0]))
		}
	}
	return os.NewFile(uintptr(fds[0]), name), nil
}

func (p *pipes) closeChild() {
	for _, f := range []*os.File{p.progress, p.sync, p.send, p.control, p.status} {
		if f != nil {
			f.Close()
		}
	}
}

func (p *pipes) closeOwn() {
	for _, f := range []*os.File{p.fromPayload, p.toPayload, p.received, p.toHolder, p.fromHolder} {
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
