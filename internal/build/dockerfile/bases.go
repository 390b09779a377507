package dockerfile

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// maxDockerfileBytes is the frontend's own bound.
const maxDockerfileBytes = 16 << 20

// Bases lists the images that the stages of a Dockerfile begin with, each once, in
// their order. args are "NAME=value" for the ARGs before the first FROM.
func Bases(r io.Reader, args []string) ([]string, error) {
	parsed, err := parser.Parse(io.LimitReader(r, maxDockerfileBytes))
	if err != nil {
		return nil, fmt.Errorf("dockerfile: %w", err)
	}
	stages, meta, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, fmt.Errorf("dockerfile: %w", err)
	}
	lex := shell.NewLex(parsed.EscapeToken)
	env, err := metaArgs(lex, meta, args)
	if err != nil {
		return nil, err
	}
	var out []string
	known := map[string]bool{"scratch": true}
	for _, s := range stages {
		res, err := lex.ProcessWordWithMatches(s.BaseName, shell.EnvsFromSlice(env))
		if err != nil {
			return nil, fmt.Errorf("dockerfile: FROM %s: %w", s.BaseName, err)
		}
		if name := res.Result; name != "" && !known[strings.ToLower(name)] && !slices.Contains(out, name) {
			out = append(out, name)
		}
		if s.Name != "" {
			known[strings.ToLower(s.Name)] = true
		}
	}
	return out, nil
}

// metaArgs are the ARGs before the first FROM with the values they get.
func metaArgs(lex *shell.Lex, meta []instructions.ArgCommand, args []string) ([]string, error) {
	var env []string
	for _, cmd := range meta {
		for _, a := range cmd.Args {
			value := a.ValueString()
			res, err := lex.ProcessWordWithMatches(value, shell.EnvsFromSlice(env))
			if err != nil {
				return nil, fmt.Errorf("dockerfile: ARG %s: %w", a.Key, err)
			}
			value = res.Result
			for _, given := range args {
				if k, v, ok := strings.Cut(given, "="); ok && k == a.Key {
					value = v
				}
			}
			env = append(env, a.Key+"="+value)
		}
	}
	return env, nil
}
