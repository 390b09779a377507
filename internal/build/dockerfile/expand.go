package dockerfile

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"den/internal/oci"
)

const (
	// maxExpandedBytes bounds one expanded word, argument or here-document. The
	// kernel takes no variable longer than 128 KiB (MAX_ARG_STRLEN), so only
	// here-documents come near.
	maxExpandedBytes = 32 << 20
	// maxVariableBytes bounds a variable, with room for those that no program
	// is to see.
	maxVariableBytes = 1 << 20
	// maxEnvWork bounds the bytes of the environments of all instructions
	// together: each carries a copy of its own.
	maxEnvWork = 512 << 20
)

// variable matches a reference, "$NAME" or "${NAME"; the third group is "/" where
// occurrences of a pattern are replaced. The slash of "$NAME/file" is text.
var variable = regexp.MustCompile(`\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(/?))`)

// expansions bounds from above what a Dockerfile's variables can expand to,
// before the frontend expands them: "ENV A=$A$A" forty times is a terabyte.
type expansions struct {
	mu    sync.Mutex
	given map[string]int64 // lengths of build arguments and of base images' environments
	files []expandedFile
}

type expandedFile struct {
	name string
	ast  *parser.Node
}

func newExpansions(options map[string]string) *expansions {
	x := &expansions{given: map[string]int64{}}
	for k, v := range options {
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok {
			x.given[name] = int64(len(v))
		}
	}
	return x
}

// file checks a Dockerfile, and remembers it for what base images bring.
func (x *expansions) file(name string, ast *parser.Node) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.files = append(x.files, expandedFile{name, ast})
	return x.check(x.files[len(x.files)-1])
}

// image checks the Dockerfiles again with the environment and the triggers of
// a base image.
func (x *expansions) image(name string, config []byte) error {
	var img struct {
		Config struct{ Env, OnBuild []string }
	}
	if len(config) == 0 {
		return nil
	}
	if err := json.Unmarshal(config, &img); err != nil {
		return nil // the frontend says what is wrong with it
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	grew := false
	for _, e := range img.Config.Env {
		k, v, _ := strings.Cut(e, "=")
		if n := int64(len(v)); n > x.given[k] {
			x.given[k], grew = n, true
		}
	}
	if len(img.Config.OnBuild) > 0 {
		triggers := strings.Join(img.Config.OnBuild, "\n")
		if tree, err := parser.Parse(strings.NewReader(triggers)); err == nil {
			f := expandedFile{"ONBUILD of " + name, tree.AST}
			if len(tree.AST.Children) > maxInstructions {
				return tooMany(f.name, len(tree.AST.Children))
			}
			x.files, grew = append(x.files, f), true
		}
	}
	if !grew {
		return nil
	}
	for _, f := range x.files {
		if err := x.check(f); err != nil {
			return err
		}
	}
	return nil
}

// check walks the instructions in order. What one stage sets counts for all:
// the bound is from above.
func (x *expansions) check(f expandedFile) error {
	s := sizes{of: maps.Clone(x.given)}
	for _, n := range x.given {
		s.env += n
	}
	for _, n := range f.ast.Children {
		if err := s.instruction(n); err != nil {
			return fmt.Errorf("%s:%d: %s: %w: %w", f.name, n.StartLine, err, oci.ErrTooLarge, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// sizes are the lengths that variables have at most.
type sizes struct {
	of        map[string]int64
	env, work int64
}

func (s *sizes) instruction(n *parser.Node) error {
	if strings.EqualFold(n.Value, "onbuild") && n.Next != nil && len(n.Next.Children) == 1 {
		return s.instruction(n.Next.Children[0])
	}
	if s.work += s.env; s.work > maxEnvWork {
		return fmt.Errorf("the environments of the instructions take more than %d MiB together", maxEnvWork>>20)
	}
	if !strings.EqualFold(n.Value, "run") && s.expanded(n.Original) > maxExpandedBytes {
		return fmt.Errorf("it expands to more than %d MiB", maxExpandedBytes>>20)
	}
	for _, h := range n.Heredocs {
		if h.Expand && s.expanded(h.Content) > maxExpandedBytes {
			return fmt.Errorf("the here-document %s expands to more than %d MiB", h.Name, maxExpandedBytes>>20)
		}
	}
	cmd, err := instructions.ParseInstruction(n)
	if err != nil {
		return nil // the frontend says it better
	}
	switch cmd := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range cmd.Env {
			if err := s.set(kv.Key, kv.Value); err != nil {
				return err
			}
		}
	case *instructions.ArgCommand:
		for _, kv := range cmd.Args {
			if kv.Value == nil {
				continue
			}
			if err := s.set(kv.Key, *kv.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// set notes that a variable may become value.
func (s *sizes) set(name, value string) error {
	n := s.expanded(value)
	if n > maxVariableBytes {
		return fmt.Errorf("the variable %.80s expands to more than %d KiB", name, maxVariableBytes>>10)
	}
	if old := s.of[name]; n > old {
		s.of[name] = n
		s.env += n - old
	}
	return nil
}

// expanded is how long text can become. Bounds that no file comes near are
// cut, so that nothing overflows.
func (s *sizes) expanded(text string) int64 {
	const most = 1 << 40
	refs := variable.FindAllStringSubmatch(text, -1)
	once := int64(len(text))
	for _, m := range refs {
		once = min(once+s.of[m[1]+m[2]], most)
	}
	sum := once
	for _, m := range refs {
		if n := s.of[m[2]]; m[3] != "" && n > 0 { // each of its bytes may be replaced by all that follows
			sum = min(sum+min(n, most/once)*once, most)
		}
	}
	return sum
}
