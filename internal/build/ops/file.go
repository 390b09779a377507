package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/progress"
)

// fileMaxActions bounds the actions of one op, whose results depend on each
// other.
const fileMaxActions = 1 << 14

// fileOp copies, makes and removes files. It reads its inputs through package
// tree, works out in memory what changes, and makes a layer of that; it mounts
// nothing and runs nothing.
type fileOp struct {
	env    *Env
	v      *llb.Vertex
	op     *pb.FileOp
	inputs int
}

func newFileOp(env *Env, v *llb.Vertex) (solver.Op, error) {
	op := v.Op.GetFile()
	if op == nil {
		return nil, fmt.Errorf("file: no operation: %w", errdefs.ErrInvalidArgument)
	}
	f := &fileOp{env: env, v: v, op: op, inputs: len(v.Inputs)}
	if err := f.validate(); err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	return f, nil
}

// validate checks all indexes. That actions do not take each other's results in
// a circle shows when they run.
func (f *fileOp) validate() error {
	n := len(f.op.Actions)
	if n == 0 || n > fileMaxActions {
		return fmt.Errorf("%d actions: %w", n, errdefs.ErrInvalidArgument)
	}
	all := int64(f.inputs + n)
	outputs := map[int64]bool{}
	for i, a := range f.op.Actions {
		for _, in := range []int64{a.GetInput(), a.GetSecondaryInput()} {
			if in < -1 || in >= all {
				return fmt.Errorf("action %d: input %d: %w", i, in, errdefs.ErrInvalidArgument)
			}
		}
		for _, u := range actionUsers(a) {
			if u.byName.GetInput() < 0 || u.byName.GetInput() >= all {
				return fmt.Errorf("action %d: user %q from input %d: %w", i, u.byName.GetName(), u.byName.GetInput(), errdefs.ErrInvalidArgument)
			}
		}
		if a.GetAction() == nil {
			return fmt.Errorf("action %d: empty: %w", i, errdefs.ErrInvalidArgument)
		}
		if a.Output == -1 {
			continue
		}
		if a.Output < 0 || a.Output >= int64(n) || outputs[a.Output] {
			return fmt.Errorf("action %d: output %d: %w", i, a.Output, errdefs.ErrInvalidArgument)
		}
		outputs[a.Output] = true
	}
	for i := range outputs {
		if i >= int64(len(outputs)) {
			return fmt.Errorf("output %d of %d: %w", i, len(outputs), errdefs.ErrInvalidArgument)
		}
	}
	if len(outputs) == 0 {
		return fmt.Errorf("no outputs: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// actionUser is a user or group that an action gives by name, and the file it
// is looked up in.
type actionUser struct {
	byName *pb.NamedUserOpt
	file   string
}

func actionUsers(a *pb.FileAction) []actionUser {
	var out []actionUser
	owner := actionOwner(a)
	if u, ok := owner.GetUser().GetUser().(*pb.UserOpt_ByName); ok {
		out = append(out, actionUser{u.ByName, filePasswd})
	}
	if g, ok := owner.GetGroup().GetUser().(*pb.UserOpt_ByName); ok {
		out = append(out, actionUser{g.ByName, fileGroup})
	}
	return out
}

func actionOwner(a *pb.FileAction) *pb.ChownOpt {
	switch x := a.GetAction().(type) {
	case *pb.FileAction_Mkdir:
		return x.Mkdir.GetOwner()
	case *pb.FileAction_Mkfile:
		return x.Mkfile.GetOwner()
	case *pb.FileAction_Symlink:
		return x.Symlink.GetOwner()
	case *pb.FileAction_Copy:
		return x.Copy.GetOwner()
	}
	return nil
}

// CacheMap follows BuildKit's recipe (solver/llbsolver/ops/file.go) but for
// what inputKey says: a source counts by the content that is selected from it
// and by its base name, what is changed by its identity.
func (f *fileOp) CacheMap(context.Context, progress.Sink) (*solver.CacheMap, error) {
	selectors := make([][]Selector, f.inputs)
	changed := make([]bool, f.inputs)
	actions := make([][]byte, 0, len(f.op.Actions))
	indexes := make([][]int, 0, len(f.op.Actions))
	for i, a := range f.op.Actions {
		if a.Input >= 0 && a.Input < int64(f.inputs) {
			changed[a.Input] = true
		}
		for _, u := range actionUsers(a) {
			if u.byName.Input >= int64(f.inputs) {
				return nil, fmt.Errorf("file: action %d: user %q of another action's result: %w", i, u.byName.Name, errdefs.ErrInvalidArgument)
			}
			selectors[u.byName.Input] = append(selectors[u.byName.Input], Selector{Path: u.file, FollowLinks: true})
		}
		dt, err := f.actionKey(a, selectors)
		if err != nil {
			return nil, err
		}
		actions = append(actions, dt)
		indexes = append(indexes, []int{int(a.Input), int(a.SecondaryInput), int(a.Output)})
	}
	if isDefaultIndexes(indexes) {
		indexes = nil
	}
	dt, err := json.Marshal(struct {
		Type    string
		Actions [][]byte
		Indexes [][]int `json:"indexes,omitempty"`
	}{"buildkit.file.v0", actions, indexes})
	if err != nil {
		return nil, err
	}
	cm := &solver.CacheMap{Digest: digest.FromBytes(dt), Inputs: make([]solver.InputKey, f.inputs)}
	for i, sel := range selectors {
		if len(sel) > 0 && !changed[i] {
			cm.Inputs[i] = f.inputKey(sel)
		}
	}
	return cm, nil
}

// actionKey is what of an action counts; what it selects from an input goes to
// selectors.
func (f *fileOp) actionKey(a *pb.FileAction, selectors [][]Selector) ([]byte, error) {
	switch x := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		return json.Marshal(x.Mkdir)
	case *pb.FileAction_Mkfile:
		return json.Marshal(x.Mkfile)
	case *pb.FileAction_Symlink:
		return json.Marshal(x.Symlink)
	case *pb.FileAction_Rm:
		return json.Marshal(x.Rm)
	case *pb.FileAction_Copy:
		p := x.Copy.CloneVT()
		if in := a.SecondaryInput; in != -1 && in < int64(f.inputs) {
			selectors[in] = append(selectors[in], Selector{
				Path: p.Src, Wildcard: p.AllowWildcard && containsWildcards(p.Src), FollowLinks: p.FollowSymlink,
				IncludePatterns: p.IncludePatterns, ExcludePatterns: p.ExcludePatterns, RequiredPaths: p.RequiredPaths,
			})
			p.Src = path.Base(p.Src)
		}
		return json.Marshal(p)
	}
	return nil, fmt.Errorf("file: action %T: %w", a.Action, errdefs.ErrNotImplemented)
}

// inputKey keeps the selected paths as they are and in the order of the
// actions, whose keys only have the base names: sorted, or without those below
// others as BuildKit's are, two copies that change places would be one to the
// cache, and so would be a file and another one behind a link.
func (f *fileOp) inputKey(sel []Selector) solver.InputKey {
	paths := make([]string, len(sel))
	for i, s := range sel {
		paths[i] = s.Path
	}
	return solver.InputKey{
		Selector: string(digest.FromString(strings.Join(paths, "\x00"))),
		Content: func(ctx context.Context, r solver.Result) (oci.Digest, error) {
			ref, err := asRef(r)
			if err != nil {
				return "", err
			}
			return contentHash(ctx, f.env, ref, sel)
		},
	}
}

// isDefaultIndexes recognises a plain chain of actions, which BuildKit's older
// keys left unsaid.
func isDefaultIndexes(indexes [][]int) bool {
	for i, x := range indexes {
		input, output := len(indexes)+i-1, -1
		if i == 0 {
			input = 0
		}
		if i == len(indexes)-1 {
			output = 0
		}
		if x[0] != input || x[1] != -1 && x[1] != 1 || x[2] != output {
			return false
		}
	}
	return len(indexes) > 0
}
