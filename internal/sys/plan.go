package sys

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A Plan is a program of raw system calls, as data. It is built in Go, printed
// by String, and walked by a process that is nothing but the plan: a few pages
// of memory, no Go runtime, nothing of the caller's memory (see plan_image.go).
//
// That matters three times: starting it costs a vfork whatever the size of the caller, what
// it clones can be copied without danger, and a process that is seen or traced
// by a payload holds nothing worth reading.
//
// An operation's result can be kept in a cell and be an argument of later
// operations. Its three outcomes (error, zero, positive) continue with the next
// operation unless a label is named for them; an error without a label is
// fatal: it continues at the label given to OnFatal.
type Plan struct {
	ops    []*Op
	data   []byte
	relocs []reloc
	labels []int // by Label: index of an operation
	fatal  Label
}

// reloc is a word of data that holds the address of another place in data.
type reloc struct{ at, to int }

// A Label is a place in a plan to continue at; 0 is no label.
type Label int

// A Cell is 64 bits of the plan's memory.
type Cell struct{ at int }

type argKind uint8

const (
	argValue argKind = iota
	argData          // the address of data[v]
	argCell          // the 64 bits at data[v]
)

// An Arg is an argument of an operation.
type Arg struct {
	kind argKind
	v    uint64
	text string
}

// An Op is one system call of a plan.
type Op struct {
	nr             uintptr
	args           [6]Arg
	n              int
	dst            *Cell
	err, zero, pos Label
	fatal, mayFail bool
	note           string
	index          int
	before         []*Op // earlier attempts at the same, which continue where it does
}

// NewPlan returns an empty plan. Without OnFatal, a fatal error exits with 125.
func NewPlan() *Plan {
	return &Plan{labels: []int{-1}}
}

// Int is an argument's value.
func Int[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](v T) Arg {
	return Arg{v: uint64(v)}
}

// Label makes a label whose place Mark tells later.
func (p *Plan) Label() Label {
	p.labels = append(p.labels, -1)
	return Label(len(p.labels) - 1)
}

// Mark gives l the place of the next operation.
func (p *Plan) Mark(l Label) { p.labels[l] = len(p.ops) }

// OnFatal makes errors of the operations added from now on continue at l.
func (p *Plan) OnFatal(l Label) { p.fatal = l }

// Cell returns a new cell that holds v.
func (p *Plan) Cell(v uint64) *Cell {
	p.align()
	at := len(p.data)
	p.data = binary.LittleEndian.AppendUint64(p.data, v)
	return &Cell{at}
}

// Value is what the cell holds when the operation runs.
func (c *Cell) Value() Arg { return Arg{kind: argCell, v: uint64(c.at)} }

// Addr is the address of the cell.
func (c *Cell) Addr() Arg {
	return Arg{kind: argData, v: uint64(c.at), text: fmt.Sprintf("&c%d", c.at)}
}

// Part is the cell at offset bytes into a buffer made by Bytes or Buffer.
func (a Arg) Part(offset int) *Cell { return &Cell{int(a.v) + offset} }

// Plus is the address n bytes further on.
func (a Arg) Plus(n int) Arg {
	return Arg{kind: a.kind, v: a.v + uint64(n), text: fmt.Sprintf("%s+%d", a, n)}
}

// Str is the address of a copy of s that ends with a zero byte.
func (p *Plan) Str(s string) Arg {
	at := len(p.data)
	p.data = append(append(p.data, s...), 0)
	return Arg{kind: argData, v: uint64(at), text: fmt.Sprintf("%q", s)}
}

// Bytes is the address of a copy of b.
func (p *Plan) Bytes(b []byte) Arg {
	p.align()
	at := len(p.data)
	p.data = append(p.data, b...)
	return Arg{kind: argData, v: uint64(at), text: fmt.Sprintf("<%d bytes>", len(b))}
}

// Buffer is the address of n zero bytes.
func (p *Plan) Buffer(n int) Arg { return p.Bytes(make([]byte, n)) }

// Words is the address of a sequence of 64-bit words: each argument's value or
// address.
func (p *Plan) Words(args ...Arg) Arg {
	p.align()
	at := len(p.data)
	for _, a := range args {
		if a.kind == argData {
			p.relocs = append(p.relocs, reloc{at: len(p.data), to: int(a.v)})
		}
		p.data = binary.LittleEndian.AppendUint64(p.data, a.v)
	}
	return Arg{kind: argData, v: uint64(at), text: fmt.Sprintf("<%d words>", len(args))}
}

// Strs is the address of a list of strings as execve wants it.
func (p *Plan) Strs(ss []string) Arg {
	args := make([]Arg, 0, len(ss)+1)
	for _, s := range ss {
		args = append(args, p.Str(s))
	}
	a := p.Words(append(args, Arg{})...)
	a.text = fmt.Sprintf("%q", ss)
	if len(a.text) > 200 {
		a.text = fmt.Sprintf("<%d strings>", len(ss))
	}
	return a
}

func (p *Plan) align() {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
}

// Do appends a system call.
func (p *Plan) Do(nr uintptr, args ...Arg) *Op {
	o := &Op{nr: nr, n: len(args), index: len(p.ops), err: p.fatal, fatal: true}
	copy(o.args[:], args)
	p.ops = append(p.ops, o)
	return o
}

// Goto continues at l.
func (p *Plan) Goto(l Label) {
	p.Do(unix.SYS_GETPID).Pos(l).Zero(l).Err(l)
}

// Exit ends the process with code.
func (p *Plan) Exit(code int) {
	p.Do(unix.SYS_EXIT_GROUP, Int(code))
}

// To keeps the result, or the negative errno, in c.
func (o *Op) To(c *Cell) *Op { o.dst = c; return o }

// MayFail goes on with the next operation after an error.
func (o *Op) MayFail() *Op { o.mayFail, o.fatal, o.err = true, false, 0; return o }

// Err continues at l after an error.
func (o *Op) Err(l Label) *Op { o.err, o.fatal = l, false; return o }

// Zero continues at l after a result of 0.
func (o *Op) Zero(l Label) *Op {
	for _, b := range append(o.before, o) {
		b.zero = l
	}
	return o
}

// Pos continues at l after any other result.
func (o *Op) Pos(l Label) *Op {
	for _, b := range append(o.before, o) {
		b.pos = l
	}
	return o
}

// Note says for people what the operation is for; it begins an error's text.
func (o *Op) Note(s string) *Op { o.note = s; return o }

// Len is the number of operations.
func (p *Plan) Len() int { return len(p.ops) }

// OpAt is the operation at address, as a failed plan reports it, or nil.
func (p *Plan) OpAt(address uint64) *Op {
	i := (address - opsAddress) / opBytes
	if address < opsAddress || i >= uint64(len(p.ops)) {
		return nil
	}
	return p.ops[i]
}

// About is the operation's note.
func (o *Op) About() string { return o.note }

// Call is the name of the operation's system call.
func (o *Op) Call() string { return CallName(o.nr) }

// Failure describes the operation at address, as a failed plan reports it, and its errno.
func (p *Plan) Failure(address uint64, errno unix.Errno) error {
	o := p.OpAt(address)
	if o == nil {
		return fmt.Errorf("operation at %#x: %w", address, errno)
	}
	if o.note == "" {
		return fmt.Errorf("%s: %w", CallName(o.nr), errno)
	}
	return fmt.Errorf("%s: %s: %w", o.note, CallName(o.nr), errno)
}

// String lists the operations, one on a line.
func (p *Plan) String() string {
	var b strings.Builder
	marks := map[int][]int{}
	for l, i := range p.labels {
		if l > 0 {
			marks[i] = append(marks[i], l)
		}
	}
	for i, o := range p.ops {
		for _, l := range marks[i] {
			fmt.Fprintf(&b, "L%d:\n", l)
		}
		fmt.Fprintf(&b, "%4d %s", i, o)
		b.WriteByte('\n')
	}
	return b.String()
}

// String is the call with its arguments and where it continues.
func (o *Op) String() string {
	args := make([]string, o.n)
	for i := range args {
		args[i] = o.args[i].String()
	}
	s := fmt.Sprintf("%s(%s)", CallName(o.nr), strings.Join(args, ", "))
	if o.dst != nil {
		s += fmt.Sprintf(" -> c%d", o.dst.at)
	}
	switch {
	case o.mayFail:
		s += " or not"
	case !o.fatal:
		s += fmt.Sprintf(" error: L%d", o.err)
	}
	if o.zero != 0 {
		s += fmt.Sprintf(" zero: L%d", o.zero)
	}
	if o.pos != 0 {
		s += fmt.Sprintf(" positive: L%d", o.pos)
	}
	if o.note != "" {
		s += "  # " + o.note
	}
	return s
}

// String is the argument as String of a plan prints it.
func (a Arg) String() string {
	switch a.kind {
	case argCell:
		return fmt.Sprintf("c%d", a.v)
	case argData:
		if a.text != "" {
			return a.text
		}
		return fmt.Sprintf("&c%d", a.v)
	default:
		if v := int64(a.v); v > -4096 && v < 4096 {
			return fmt.Sprint(v)
		}
		return fmt.Sprintf("%#x", a.v)
	}
}

// FailureBytes is the size of FailureRecord.
const FailureBytes = 16

// FailureRecord is the address of two words: the errno and the address of the
// last operation that failed, for Failure.
func FailureRecord() Arg { return Arg{v: dataAddress} }
