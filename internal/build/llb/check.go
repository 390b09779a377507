package llb

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// checkKnown refuses fields and enum values that this version does not know,
// at any depth: a newer frontend that uses one must fail, not have its step
// done halfway.
func checkKnown(m protoreflect.Message, depth int) error {
	if depth > maxDepth {
		return errors.New("messages are nested too deeply")
	}
	name := m.Descriptor().Name()
	if raw := m.GetUnknown(); len(raw) > 0 {
		return fmt.Errorf("%s has a field that this version does not know: %w", name, errdefs.ErrNotImplemented)
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = checkField(fd, v, depth)
		return err == nil
	})
	return err
}

func checkField(fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) error {
	var err error
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil {
			return nil
		}
		v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			err = checkKnown(v.Message(), depth+1)
			return err == nil
		})
	case fd.IsList():
		list := v.List()
		for i := 0; i < list.Len() && err == nil; i++ {
			err = checkValue(fd, list.Get(i), depth)
		}
	default:
		err = checkValue(fd, v, depth)
	}
	return err
}

func checkValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) error {
	if fd.Message() != nil {
		return checkKnown(v.Message(), depth+1)
	}
	if e := fd.Enum(); e != nil && e.Values().ByNumber(v.Enum()) == nil {
		return fmt.Errorf("%s has the value %d, which this version does not know: %w", fd.FullName(), v.Enum(), errdefs.ErrNotImplemented)
	}
	return nil
}

// checkOp checks what can be checked without the inputs.
func checkOp(op *pb.Op) error {
	n := len(op.Inputs)
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		return checkSource(o.Source, n)
	case *pb.Op_Exec:
		return checkExec(o.Exec, n)
	case *pb.Op_File:
		return checkFile(o.File, n)
	case *pb.Op_Merge:
		return checkMerge(o.Merge, n)
	case *pb.Op_Diff:
		return unsupported("DiffOp")
	case *pb.Op_Build:
		return unsupported("BuildOp")
	case *pb.Op_Passthrough:
		return unsupported("PassthroughOp")
	}
	return errors.New("an operation without a kind")
}

func unsupported(kind string) error {
	return fmt.Errorf("den does not execute LLB's %s; Dockerfiles do not need it: %w", kind, errdefs.ErrNotImplemented)
}

func checkSource(o *pb.SourceOp, n int) error {
	if n != 0 {
		return fmt.Errorf("a source with %d inputs", n)
	}
	scheme, _, ok := strings.Cut(o.Identifier, "://")
	if !ok || scheme == "" {
		return fmt.Errorf("source %.200q has no scheme", o.Identifier)
	}
	return nil
}

func checkExec(o *pb.ExecOp, n int) error {
	if o.Meta == nil || len(o.Meta.Args) == 0 {
		return errors.New("an exec without arguments")
	}
	for _, d := range o.CdiDevices {
		if !d.Optional {
			return fmt.Errorf("device %.200q is required, and den has no device support: %w", d.Name, errdefs.ErrNotImplemented)
		}
	}
	o.CdiDevices = nil
	root := false
	seen := map[int64]bool{}
	for _, m := range o.Mounts {
		if m.Input < -1 || m.Input >= int64(n) {
			return fmt.Errorf("mount %.200q takes input %d of %d", m.Dest, m.Input, n)
		}
		root = root || m.Dest == pb.RootMount && m.MountType == pb.MountType_BIND
		if m.MountType != pb.MountType_BIND {
			continue // has no output, whatever it says
		}
		if m.Output < -1 || m.Output >= int64(len(o.Mounts)) {
			return fmt.Errorf("mount %.200q makes output %d, out of range", m.Dest, m.Output)
		}
		if m.Output >= 0 && seen[m.Output] {
			return fmt.Errorf("output %d is made twice", m.Output)
		}
		seen[m.Output] = true
	}
	if !root {
		return errors.New("an exec without a root file system")
	}
	return checkDense(seen)
}

func checkFile(o *pb.FileOp, n int) error {
	if len(o.Actions) == 0 {
		return errors.New("a file operation without actions")
	}
	seen := map[int64]bool{}
	for i, a := range o.Actions {
		// An input is one of the operation, or the result of an earlier action.
		most := int64(n + i)
		_, copies := a.Action.(*pb.FileAction_Copy)
		if a.Input < -1 || a.Input >= most || a.SecondaryInput < -1 || copies && a.SecondaryInput >= most {
			return fmt.Errorf("action %d takes inputs %d and %d, of %d", i, a.Input, a.SecondaryInput, most)
		}
		if a.Output < -1 || a.Output >= int64(len(o.Actions)) || a.Output >= 0 && seen[a.Output] {
			return fmt.Errorf("action %d makes output %d, out of range or twice", i, a.Output)
		}
		seen[a.Output] = true
		if a.Action == nil {
			return fmt.Errorf("action %d is empty", i)
		}
		if err := checkOwner(a, n); err != nil {
			return fmt.Errorf("action %d: %w", i, err)
		}
	}
	return checkDense(seen)
}

// checkDense wants outputs numbered from 0 without a hole, so that each has a
// result.
func checkDense(seen map[int64]bool) error {
	delete(seen, -1)
	for i := range len(seen) {
		if !seen[int64(i)] {
			return fmt.Errorf("output %d is missing", i)
		}
	}
	return nil
}

func checkOwner(a *pb.FileAction, n int) error {
	var owner *pb.ChownOpt
	switch x := a.Action.(type) {
	case *pb.FileAction_Copy:
		owner = x.Copy.Owner
	case *pb.FileAction_Mkfile:
		owner = x.Mkfile.Owner
	case *pb.FileAction_Mkdir:
		owner = x.Mkdir.Owner
	case *pb.FileAction_Symlink:
		owner = x.Symlink.Owner
	}
	for _, u := range []*pb.UserOpt{owner.GetUser(), owner.GetGroup()} {
		if name := u.GetByName(); name != nil && (name.Input < -1 || name.Input >= int64(n)) {
			return fmt.Errorf("the owner %.80q is looked up in input %d of %d", name.Name, name.Input, n)
		}
	}
	return nil
}

func checkMerge(o *pb.MergeOp, n int) error {
	if len(o.Inputs) != n {
		return fmt.Errorf("a merge of %d with %d inputs", len(o.Inputs), n)
	}
	for _, in := range o.Inputs {
		if in.Input < 0 || in.Input >= int64(n) {
			return fmt.Errorf("a merge of input %d of %d", in.Input, n)
		}
	}
	return nil
}
