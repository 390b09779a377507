package sys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A plan becomes a static ELF file in a memfd. Its addresses are fixed, so that
// every pointer is known when the file is written:
//
//	textAddress  the ELF header, then the walker (machine_*.s)      read, execute
//	dataAddress  two words: errno and address of the last failed operation
//	opsAddress   the operations, then the plan's data               read, write
//
// Segments are 64 KiB apart for kernels with such pages.
const (
	textAddress  = 0x500000
	dataAddress  = 0x510000 // known to machine_*.s
	opsAddress   = dataAddress + 64
	pageBytes    = 0x10000
	headerBytes  = 64 + 3*56
	machineBytes = 512
)

// An operation is opWords words: the call's number, six arguments, the mask of
// those that are addresses of values, the address for the result (or 0), and
// where to go on after an error, zero, and anything else.
const (
	opWords = 12
	opBytes = opWords * 8
)

// errNoMachine is what Start answers where no walker was written.
var errNoMachine = errors.New("plans of system calls need a processor of type amd64 or arm64")

// image is the plan as an ELF file.
func (p *Plan) image() ([]byte, error) {
	code := machineCode()
	if code == nil {
		return nil, errNoMachine
	}
	// Running off the end, and labels that were never marked, end here.
	end := len(p.ops)
	ops := make([]byte, 0, (end+1)*opBytes)
	base := uint64(opsAddress + (end+1)*opBytes)
	for i, o := range p.ops {
		ops = p.appendOp(ops, o, i, base)
	}
	ops = p.appendOp(ops, &Op{nr: unix.SYS_EXIT_GROUP, args: [6]Arg{{v: 125}}}, end-1, base)

	data := bytes.Clone(p.data)
	for _, r := range p.relocs {
		binary.LittleEndian.PutUint64(data[r.at:], base+uint64(r.to))
	}
	size := opsAddress - dataAddress + len(ops) + len(data)
	f := make([]byte, 0, pageBytes+size)
	f = appendELFHeader(f, uint64(size))
	f = append(f, code...)
	f = append(f, make([]byte, pageBytes+opsAddress-dataAddress-len(f))...)
	f = append(f, ops...)
	return append(f, data...), nil
}

func (p *Plan) appendOp(b []byte, o *Op, i int, data uint64) []byte {
	address := func(l Label) uint64 {
		n := i + 1
		if l != 0 {
			if n = p.labels[l]; n < 0 {
				n = len(p.ops)
			}
		}
		return opsAddress + uint64(n)*opBytes
	}
	word := func(v uint64) { b = binary.LittleEndian.AppendUint64(b, v) }
	word(uint64(o.nr))
	var mask uint64
	for k, a := range o.args {
		v := a.v
		if a.kind != argValue {
			v += data
		}
		if a.kind == argCell {
			mask |= 1 << k
		}
		word(v)
	}
	word(mask)
	if o.dst != nil {
		word(data + uint64(o.dst.at))
	} else {
		word(0)
	}
	if o.fatal && o.err == 0 {
		word(opsAddress + uint64(len(p.ops))*opBytes)
	} else {
		word(address(o.err))
	}
	word(address(o.zero))
	word(address(o.pos))
	return b
}

// appendELFHeader appends the headers of a static executable with two segments
// and a stack that is not executable.
func appendELFHeader(b []byte, dataBytes uint64) []byte {
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	le := binary.LittleEndian
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, textAddress+headerBytes) // entry
	b = le.AppendUint64(b, 64)                      // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, 64)
	b = le.AppendUint16(b, 56)
	b = le.AppendUint16(b, 3)
	b = append(b, make([]byte, 6)...)
	segment := func(kind, flags uint32, offset, address, size uint64) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{offset, address, address, size, size, pageBytes} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(1, 5, 0, textAddress, headerBytes+machineBytes)
	segment(1, 6, pageBytes, dataAddress, dataBytes)
	segment(0x6474e551, 6, 0, 0, 0) // PT_GNU_STACK
	return b
}

// File is the plan in an executable anonymous file.
func (p *Plan) File(name string) (*os.File, error) {
	img, err := p.image()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	// Only what is not zero is written: between the walker and the operations
	// lies a hole.
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteAt(img[:headerBytes+machineBytes], 0)
	if err == nil {
		_, err = f.WriteAt(img[pageBytes:], pageBytes)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write plan: %w", err)
	}
	return f, nil
}

// Start runs the plan in a new process that the caller has to wait for. name is
// what ps shows. files become its descriptors 0, 1, 2 ...; nil leaves one closed. Everything
// else that the caller has open and not marked close-on-exec is inherited too: a plan
// begins with close_range.
func (p *Plan) Start(name string, files []*os.File) (pid int, err error) {
	f, err := p.File(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fds := make([]uintptr, len(files))
	top := len(files)
	for i, f := range files {
		fds[i] = ^uintptr(0)
		if f != nil {
			fds[i] = f.Fd()
			top = max(top, int(fds[i]))
		}
	}
	// Before it executes, ForkExec copies each file that stands in another's
	// place to a number above all of them: the memfd must lie above those, too.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, top+len(files)+3)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	defer unix.Close(fd)
	pid, err = syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{name}, &syscall.ProcAttr{Files: fds})
	runtime.KeepAlive(files)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	return pid, nil
}

// Exec replaces the calling process by the plan. It returns only on error.
// Every descriptor that is not marked close-on-exec is inherited.
func (p *Plan) Exec(name string) error {
	f, err := p.File(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), []string{name}, nil); err != nil {
		return fmt.Errorf("execute %s: %w", name, err)
	}
	return nil
}
