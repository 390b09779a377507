// Command toolbox does inside a test's container what busybox cannot: extended
// attributes, open files, an SSH agent's identities, memory that is really used.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

var commands = map[string]func(args []string) error{
	"agent":    agent,
	"caps":     caps,
	"eat":      eat,
	"fds":      fds,
	"forks":    forks,
	"hostile":  hostile,
	"ids":      ids,
	"key":      key,
	"orphan":   orphan,
	"signals":  signals,
	"spy":      spy,
	"storm":    storm,
	"setcap":   setcap,
	"setxattr": setxattr,
	"traffic":  traffic,
	"xattr":    xattr,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "toolbox: no such command")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "toolbox:", err)
		os.Exit(1)
	}
}

// setxattr FILE NAME VALUE
func setxattr(a []string) error {
	if len(a) != 3 {
		return errors.New("want FILE NAME VALUE")
	}
	return syscall.Setxattr(a[0], a[1], []byte(a[2]), 0)
}

// setcap FILE gives it cap_net_bind_service=ep, as revision 2 of struct vfs_cap_data.
func setcap(a []string) error {
	if len(a) != 1 {
		return errors.New("want FILE")
	}
	b := make([]byte, 20)
	binary.LittleEndian.PutUint32(b, 0x02000001)
	binary.LittleEndian.PutUint32(b[4:], 1<<10)
	return syscall.Setxattr(a[0], "security.capability", b, 0)
}

// xattr FILE NAME prints the value.
func xattr(a []string) error {
	if len(a) != 2 {
		return errors.New("want FILE NAME")
	}
	b := make([]byte, 64<<10)
	n, err := syscall.Getxattr(a[0], a[1], b)
	if err == nil {
		_, err = fmt.Printf("%s\n", b[:n])
	}
	return err
}

// fds prints what this process was born with, one "number target" a line.
func fds([]string) error {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var out []string
	for _, e := range list {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		// The rest are of Go's own run time.
		if err != nil || filepath.Base(target) == "fd" || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/sys/fs/cgroup/") {
			continue
		}
		out = append(out, e.Name()+" "+target)
	}
	sort.Strings(out)
	for _, l := range out {
		fmt.Println(l)
	}
	return nil
}

// caps prints the permitted capabilities.
func caps([]string) error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapPrm:\t"); ok {
			fmt.Print(v)
		}
	}
	return nil
}

// ids prints real and effective ids.
func ids([]string) error {
	_, err := fmt.Printf("uid=%d euid=%d gid=%d egid=%d\n", os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid())
	return err
}

// eat MIB touches that much memory and says when it is done.
func eat(a []string) error {
	if len(a) != 1 {
		return errors.New("want MIB")
	}
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	_, err = fmt.Println("ate", len(all))
	return err
}

// orphan leaves a grandchild whose parent is gone, and ends.
func orphan([]string) error {
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "(sleep 0 &) ; exit 0"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	_, err = p.Wait()
	return err
}

// signals says "ready", prints each signal it gets and ends with 40+number on SIGTERM or SIGINT.
func signals([]string) error {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	fmt.Println("ready")
	for s := range c {
		n := s.(syscall.Signal)
		fmt.Println("got", int(n))
		if n == syscall.SIGTERM || n == syscall.SIGINT {
			os.Exit(40 + int(n))
		}
	}
	return nil
}

// agent SOCKET prints kind and comment of the identities that an SSH agent offers.
func agent(a []string) error {
	if len(a) != 1 {
		return errors.New("want SOCKET")
	}
	c, err := net.Dial("unix", a[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{0, 0, 0, 1, 11}); err != nil { // SSH_AGENTC_REQUEST_IDENTITIES
		return err
	}
	var size uint32
	if err := binary.Read(c, binary.BigEndian, &size); err != nil {
		return err
	}
	b := make([]byte, min(size, 1<<20))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if len(b) < 5 || b[0] != 12 { // SSH_AGENT_IDENTITIES_ANSWER
		return fmt.Errorf("answer %x", b)
	}
	n, rest := binary.BigEndian.Uint32(b[1:]), b[5:]
	for range n {
		var key, comment string
		key, rest = field(rest)
		comment, rest = field(rest)
		kind, _ := field([]byte(key))
		fmt.Println(kind, comment)
	}
	return nil
}

// field takes one string off b: four bytes of length, then the text.
func field(b []byte) (string, []byte) {
	n := 4 + binary.BigEndian.Uint32(b)
	return string(b[4:n]), b[n:]
}
