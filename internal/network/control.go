package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// How den talks to a den-net: one connection to the socket in the network's directory
// for each request, a JSON document there and one back, with which a descriptor
// may come. Who may write to the directory may ask.
const (
	socketFile     = "den-net.sock"
	controlTimeout = 30 * time.Second
	// controlVersion changes with the meaning of what follows.
	controlVersion = 1
)

type request struct {
	Op       string    `json:"op"`
	Endpoint *Endpoint `json:"endpoint,omitempty"`
}

// The operations of a request.
const (
	opHello     = "hello"
	opPublish   = "publish"
	opWithdraw  = "withdraw"
	opNames     = "names"     // zone.json has changed
	opNamespace = "namespace" // the answer carries the bridge's
	opStop      = "stop"
)

type response struct {
	Error   string `json:"error,omitempty"`
	Version int    `json:"version"`
	Driver  string `json:"driver"`
	PID     int    `json:"pid"`
	// What a den-net has read from its network's record that can change (Networks.renew).
	MTU            int    `json:"mtu"`
	NoHostLoopback bool   `json:"noHostLoopback,omitempty"`
	Ports          []Port `json:"ports,omitempty"`
}

// socketAddress names the socket in the open directory d: dir's own path may be
// longer than an address can be (108 bytes, unix(7)).
func socketAddress(d *os.File) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: filepath.Join("/proc/self/fd", fmt.Sprint(d.Fd()), socketFile)}
}

// call asks the den-net of the network in dir. An error that it reports is a
// *reportedError; others mean that nobody answers.
func call(ctx context.Context, dir string, r request) (*response, *os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = d.Close() }()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socketAddress(d).Name)
	if err != nil {
		return nil, nil, fmt.Errorf("den-net: %w", cause(err))
	}
	defer func() { _ = conn.Close() }()
	deadline := time.Now().Add(controlTimeout)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	c := conn.(*net.UnixConn)
	if _, err := c.Write(b); err != nil {
		return nil, nil, fmt.Errorf("den-net: %w", err)
	}
	if err := c.CloseWrite(); err != nil {
		return nil, nil, err
	}
	b, file, err := receive(c)
	if err != nil {
		return nil, nil, err
	}
	var a response
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("den-net: answer: %w", err), closeFile(file))
	}
	if a.Error != "" {
		return &a, nil, errors.Join(&reportedError{a.Error}, closeFile(file))
	}
	return &a, file, nil
}

// A reportedError is what a den-net says.
type reportedError struct{ text string }

func (e *reportedError) Error() string { return e.text }

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// receive reads all that the other side sends, and one descriptor that may come with it.
func receive(c *net.UnixConn) ([]byte, *os.File, error) {
	var all []byte
	var file *os.File
	b, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, _, _, err := c.ReadMsgUnix(b, oob)
		if f := descriptor(oob[:on]); f != nil {
			_ = closeFile(file)
			file = f
		}
		all = append(all, b[:max(n, 0)]...)
		if len(all) > maxRecord {
			err = fmt.Errorf("den-net: message of more than %d bytes", maxRecord)
		}
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return all, file, nil
		}
		if err != nil {
			return nil, nil, errors.Join(err, closeFile(file))
		}
	}
}

func descriptor(oob []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			unix.CloseOnExec(fds[0])
			return os.NewFile(uintptr(fds[0]), "network namespace")
		}
	}
	return nil
}

// send writes an answer, with f if it is not nil.
func send(c *net.UnixConn, a response, f *os.File) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}
