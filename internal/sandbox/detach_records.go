package sandbox

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// records are what a holder has told of a sandbox.
type records struct {
	holder, pid          int
	status, initStatus   uint64
	exited, initExited   bool
	oomKilled, hasFailed bool
}

// maxRecords bounds how many are read: process 1 of a payload with Init can write them, too.
const maxRecords = 1 << 10

// read takes records until r ends.
func (rs *records) read(r io.Reader) error {
	for range maxRecords {
		kind, value, err := readRecord(r)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind {
		case recordPid:
			rs.pid = int(value)
		case recordHolder:
			rs.holder = int(value)
		case recordExit:
			rs.status, rs.exited = value, true
		case recordInit:
			rs.initStatus, rs.initExited = value, true
		case recordOOM:
			rs.oomKilled = true
		default:
			rs.hasFailed = true
		}
	}
	return nil
}

// exit is how the payload ended; nobody has seen it end if the holder was killed.
func (rs *records) exit(id string) (Exit, error) {
	status := rs.status
	if rs.initExited {
		status = rs.initStatus
	}
	if !rs.exited && !rs.initExited {
		return Exit{Code: 137, Signal: unix.SIGKILL}, fmt.Errorf("sandbox %s: its holder was killed", id)
	}
	ws := unix.WaitStatus(status)
	e := Exit{Code: ws.ExitStatus(), OOMKilled: rs.oomKilled}
	if ws.Signaled() {
		e.Code, e.Signal = 128+int(ws.Signal()), ws.Signal()
	}
	return e, nil
}
