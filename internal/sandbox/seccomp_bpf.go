package sandbox

import (
	"golang.org/x/net/bpf"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A block is code that always ends in a return, so that blocks can stand one
// after the other and be jumped over.
type block []bpf.Instruction

// search is the block that finds the accumulator's span by halving.
func search(spans []span) block {
	if len(spans) == 1 {
		return answer(spans[0].rules)
	}
	half := len(spans) / 2
	low, high := search(spans[:half]), search(spans[half:])
	var b block
	if len(low) <= 255 {
		b = block{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipTrue: uint8(len(low))}}
	} else {
		b = block{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))},
		}
	}
	return append(append(b, low...), high...)
}

// answer tries rules in order; the last has no conditions.
func answer(rules []rule) block {
	yes := block{bpf.RetConstant{Val: rules[0].action}}
	if len(rules[0].args) == 0 {
		return yes
	}
	return all(rules[0].args, yes, answer(rules[1:]))
}

// all is yes if every condition holds, else no.
func all(args []specs.LinuxSeccompArg, yes, no block) block {
	for i := len(args) - 1; i >= 0; i-- {
		yes = test(args[i], yes, no)
	}
	return yes
}

// test is yes if the condition holds, else no. Arguments have 64 bits and the
// machine has 32: the high half is at the greater address on the processors
// that den knows.
func test(a specs.LinuxSeccompArg, yes, no block) block {
	low := bpf.LoadAbsolute{Off: uint32(16 + 8*a.Index), Size: 4}
	high := bpf.LoadAbsolute{Off: low.Off + 4, Size: 4}
	vlow, vhigh := uint32(a.Value), uint32(a.Value>>32)
	switch a.Op {
	case specs.OpNotEqual:
		a.Op = specs.OpEqualTo
		return test(a, no, yes)
	case specs.OpLessThan:
		a.Op = specs.OpGreaterEqual
		return test(a, no, yes)
	case specs.OpLessEqual:
		a.Op = specs.OpGreaterThan
		return test(a, no, yes)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		cond := bpf.JumpGreaterThan
		if a.Op == specs.OpGreaterEqual {
			cond = bpf.JumpGreaterOrEqual
		}
		// Each test that fails falls on a jump to no, which may be far.
		b := block{
			high,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: vhigh, SkipTrue: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: vhigh, SkipFalse: 2},
			low,
			bpf.JumpIf{Cond: cond, Val: vlow, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(yes))},
		}
		return append(append(b, yes...), no...)
	case specs.OpMaskedEqual:
		b := block{
			high,
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vhigh},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ValueTwo >> 32), SkipFalse: 3},
			low,
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vlow},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ValueTwo), SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(yes))},
		}
		return append(append(b, yes...), no...)
	default: // SCMP_CMP_EQ
		b := block{
			high,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: vhigh, SkipFalse: 2},
			low,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: vlow, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(yes))},
		}
		return append(append(b, yes...), no...)
	}
}
