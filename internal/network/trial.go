package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Trial is what doctor wants to know of networks: what the choice of a driver depends on,
// and whether ports can be published.
type Trial struct {
	Facts Facts
	Ports PortTrial
}

// A PortTrial says how ports can be published; nil errors say that they can.
type PortTrial struct {
	// TCP and UDP are about ports that the kernel chooses, on all addresses; Low about TCP ports below 1024.
	TCP, UDP, Low error
}

// Try tries all of it, in the calling process.
func Try() Trial { return Trial{Facts: Probe(), Ports: TryPorts()} }

// TryPorts opens ports and closes them again at once.
func TryPorts() PortTrial {
	open := func(protocol string) error {
		sockets, _, err := listenOn(Port{Protocol: protocol}, 0)
		return errors.Join(err, closeAll(sockets))
	}
	return PortTrial{TCP: open("tcp"), UDP: open("udp"), Low: tryLowPort()}
}

// tryLowPort binds the first port below 1024 that is free, and does not listen there.
func tryLowPort() error {
	var err error
	for port := uint16(1023); port > 0; port-- {
		if err = bindOnly(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return err
}

func bindOnly(a netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	if err != nil {
		err = fmt.Errorf("bind port %d: %w", a.Port(), err)
	}
	return errors.Join(err, unix.Close(fd))
}

// trialArgument is the whole command line of a den-net that tries, says what it found, and ends.
const trialArgument = "try"

// TryInUserns is Try in a user namespace that den has not entered: a process of this program
// makes one with a single id, which is enough for networks.
func TryInUserns(ctx context.Context) (Trial, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{ProcessName, trialArgument}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWUSER,
		UidMappings:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:    unix.SIGKILL,
	}
	out, err := cmd.Output()
	if err != nil {
		return Trial{}, fmt.Errorf("try networks in a user namespace: %w", err)
	}
	var said saidTrial
	if err := json.Unmarshal(out, &said); err != nil {
		return Trial{}, fmt.Errorf("try networks in a user namespace: %w", err)
	}
	return said.trial(), nil
}

// A saidTrial is a Trial on its way from one process to the other.
type saidTrial struct {
	Namespaces, Packets, Rules, Forwarding, TCP, UDP, Low said
}

// said is an error: its text, and the system's reason for it, if that is one.
type said struct {
	Text  string
	Errno syscall.Errno
}

func words(err error) said {
	if err == nil {
		return said{}
	}
	s := said{Text: err.Error()}
	errors.As(err, &s.Errno)
	return s
}

func (s said) err() error {
	if s.Text == "" {
		return nil
	}
	return &saidError{s}
}

// A saidError is an error of another process.
type saidError struct{ said }

// Error is what the other process said.
func (e *saidError) Error() string { return e.Text }

// Unwrap is the system's reason, or nil.
func (e *saidError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

func (t Trial) write(w io.Writer) error {
	f, p := t.Facts, t.Ports
	return json.NewEncoder(w).Encode(saidTrial{words(f.Namespaces), words(f.Packets), words(f.Rules), words(f.Forwarding), words(p.TCP), words(p.UDP), words(p.Low)})
}

func (s saidTrial) trial() Trial {
	return Trial{
		Facts: Facts{Namespaces: s.Namespaces.err(), Packets: s.Packets.err(), Rules: s.Rules.err(), Forwarding: s.Forwarding.err()},
		Ports: PortTrial{TCP: s.TCP.err(), UDP: s.UDP.err(), Low: s.Low.err()},
	}
}
