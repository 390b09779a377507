package solver

import (
	"context"

	"github.com/containerd/errdefs"
)

// A Refuser is an Op that may know, before anything is executed, that it never can be
// here: a program for another processor.
type Refuser interface {
	// Refused says why; nil if it can.
	Refused(ctx context.Context) error
}

// A Fixture is an Op whose content its cache map says. Of others only the inputs' content tells whether
// what is above them was recorded under another definition.
type Fixture interface {
	// Unseen says that its content was never here, and so nothing that was made from it.
	Unseen(ctx context.Context) bool
}

// refuse returns the error of an operation that would have to be executed and cannot be, before
// the work for its inputs, and of other branches, is done and lost. What may still be found
// by its content is left to come up. In a build where nothing is refused it costs a look at each operation.
func (s *Solver) refuse(ctx context.Context, root *state) error {
	refused := map[*state]error{}
	for st := range below(root, nil) {
		if r, ok := s.operation(st).(Refuser); ok {
			if err := r.Refused(ctx); err != nil {
				refused[st] = err
			}
		}
	}
	if len(refused) == 0 {
		return nil
	}
	var failed error
	below(root, func(st *state) bool {
		if failed != nil || s.recorded(ctx, st) {
			return false
		}
		failed = s.needed(ctx, st, refused[st])
		return failed == nil
	})
	return failed
}

// needed is err if st, which is not recorded, is certain to be executed.
func (s *Solver) needed(ctx context.Context, st *state, err error) error {
	if err == nil {
		return nil
	}
	settled, unseen := true, false
	for leaf := range below(st, nil) {
		if len(leaf.inputs) > 0 {
			continue
		}
		f, ok := s.operation(leaf).(Fixture)
		settled = settled && ok
		unseen = unseen || ok && f.Unseen(ctx)
	}
	if !settled && !unseen {
		return nil
	}
	return st.attribute(s.finish(st, err))
}

// recorded says that st is found without its inputs. An error comes up again.
func (s *Solver) recorded(ctx context.Context, st *state) bool {
	cm, err := s.pin(ctx, st)
	if err != nil || cm.NoRecord {
		return err != nil
	}
	dk, err := s.definitionKey(ctx, st)
	if err != nil || !dk.trusted {
		return err != nil
	}
	_, err = s.load(ctx, dk.digest)
	return !errdefs.IsNotFound(err)
}

// operation makes the operation of st, nil if that fails, which comes up again.
func (s *Solver) operation(st *state) Op {
	st.once.Do(func() { st.op, st.err = st.vertex.Op() })
	return st.op
}

// below is st and all that it is made of, each once, from above.
// into says whether to go below one; nil is always.
func below(st *state, into func(*state) bool) map[*state]bool {
	seen := map[*state]bool{}
	for stack := []*state{st}; len(stack) > 0; {
		st := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[st] {
			continue
		}
		seen[st] = true
		if into != nil && !into(st) {
			continue
		}
		for _, in := range st.inputs {
			stack = append(stack, in.state)
		}
	}
	return seen
}
