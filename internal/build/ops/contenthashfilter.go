package ops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// contentFilter finds what a selector with patterns selects.
type contentFilter struct {
	t                contentTree
	sel              Selector
	pattern          string // sel.Path, cleaned; "" is the root
	rootOnly         bool   // pattern is the root, whose own header does not count
	include, exclude *patternmatcher.PatternMatcher
	matched          string // the last path that a wildcard matched
	picked           []*contentPick
}

// contentPick is a path that is selected, or a directory on the way to one.
type contentPick struct {
	path             string // as the selector spells it
	e                *oci.Entry
	parent           *contentPick
	picked           bool
	include, exclude patternmatcher.MatchInfo
}

// contentFiltered digests what a selector with a wildcard or patterns selects:
// the headers of directories and the files, each with its path.
func contentFiltered(ctx context.Context, t contentTree, sel Selector) (oci.Digest, error) {
	f := &contentFilter{t: t, sel: sel}
	full := path.Join("/", sel.Path)
	f.pattern, f.rootOnly = contentKey(full), full == "/"
	var err error
	if f.include, err = contentPatterns("include", sel.IncludePatterns); err != nil {
		return "", err
	}
	if f.exclude, err = contentPatterns("exclude", sel.ExcludePatterns); err != nil {
		return "", err
	}
	prefix, err := f.run(ctx)
	if err != nil {
		return "", err
	}
	if err := f.required(); err != nil {
		return "", err
	}
	sums, err := f.sums(ctx)
	if err != nil {
		return "", err
	}
	switch {
	case len(f.picked) == 0:
		return emptyContent(), nil
	case len(f.picked) == 1 && path.Base(full) == path.Base(f.picked[0].path):
		return sums[0].digest(), nil
	}
	h := sha256.New()
	for i, p := range f.picked {
		key := strings.ReplaceAll(strings.TrimPrefix(p.path, prefix), "/", "\x00")
		if key == "" {
			key = "\x00"
		}
		h.Write([]byte(key))
		h.Write([]byte("sha256:" + hex.EncodeToString(sums[i][:])))
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

func emptyContent() oci.Digest { return digest.FromBytes(nil) }

func contentPatterns(kind string, patterns []string) (*patternmatcher.PatternMatcher, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("%s patterns %.200q: %w: %w", kind, patterns, err, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// run walks from the part of the path before any wildcard, and returns that
// part.
func (f *contentFilter) run(ctx context.Context) (string, error) {
	prefix, follow := f.pattern, false
	if f.sel.Wildcard {
		// As the copy does: links are followed up to the first wildcard.
		fixed, rest := splitWildcards(f.pattern)
		prefix, follow = contentKey(fixed), rest != ""
	}
	real, e, err := contentResolve(f.t, prefix, follow)
	if err != nil || e == nil {
		return prefix, err
	}
	return prefix, f.visit(ctx, real, prefix, e, nil)
}

// visit looks at the entry e, which is at the path real and is called name by
// the selector.
func (f *contentFilter) visit(ctx context.Context, real, name string, e *oci.Entry, parent *contentPick) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	pick := &contentPick{path: name, e: e, parent: parent}
	isDir := e.Mode&unix.S_IFMT == unix.S_IFDIR
	ok, err := f.match(name)
	if err != nil {
		return err
	}
	below := parent
	// A directory that no wildcard matched is walked, but is nobody's parent.
	if ok && !(isDir && f.rootOnly && name == "") {
		take, err := f.take(pick)
		if err != nil {
			return err
		}
		if take {
			f.pick(pick)
		}
		if isDir {
			below = pick
		}
	}
	if !isDir {
		return nil
	}
	children, err := f.t.list(real)
	if err != nil {
		return err
	}
	for _, c := range children {
		base := "/" + contentName(c.Path)
		if err := f.visit(ctx, real+base, name+base, c, below); err != nil {
			return err
		}
	}
	return nil
}

// match applies the wildcard; below a match everything matches.
func (f *contentFilter) match(name string) (bool, error) {
	if !f.sel.Wildcard || f.pattern == "" || f.matched != "" && strings.HasPrefix(name, f.matched+"/") {
		return true, nil
	}
	ok, err := path.Match(f.pattern, name)
	if err != nil {
		return false, fmt.Errorf("pattern %.200q: %w: %w", f.pattern, err, errdefs.ErrInvalidArgument)
	}
	if ok {
		f.matched = name
	}
	return ok, nil
}

// take applies the include and exclude patterns.
func (f *contentFilter) take(p *contentPick) (bool, error) {
	base := f.pattern
	if f.sel.Wildcard {
		base = f.matched
	}
	candidate := strings.TrimSuffix(strings.TrimPrefix(p.path+"/", base+"/"), "/")
	var parent contentPick
	if p.parent != nil {
		parent = *p.parent
	}
	if f.include != nil {
		ok, info, err := f.include.MatchesUsingParentResults(candidate, parent.include)
		if err != nil {
			return false, fmt.Errorf("include patterns: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		p.include = info
		if !ok {
			return false, nil
		}
	}
	if f.exclude != nil {
		excluded, info, err := f.exclude.MatchesUsingParentResults(candidate, parent.exclude)
		if err != nil {
			return false, fmt.Errorf("exclude patterns: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		p.exclude = info
		if excluded {
			return false, nil
		}
	}
	return true, nil
}

// pick selects p, after the directories that it lies in.
func (f *contentFilter) pick(p *contentPick) {
	if p == nil || p.picked {
		return
	}
	f.pick(p.parent)
	p.picked = true
	f.picked = append(f.picked, p)
}

func (f *contentFilter) required() error {
	for _, want := range f.sel.RequiredPaths {
		if !slices.ContainsFunc(f.picked, func(p *contentPick) bool { return strings.HasPrefix(p.path, want) }) {
			return fmt.Errorf("%q: %w", want, errdefs.ErrNotFound)
		}
	}
	return nil
}

// sums digests what was picked. A symbolic link that a wildcard found stands
// for what it points to when links are followed.
func (f *contentFilter) sums(ctx context.Context) ([]localSum, error) {
	entries := make([]*oci.Entry, len(f.picked))
	for i, p := range f.picked {
		entries[i] = p.e
	}
	sums, err := f.t.hash(ctx, entries)
	if err != nil {
		return nil, err
	}
	for i, p := range f.picked {
		if p.parent == nil && f.sel.FollowLinks && isLink(p.e) {
			if sums[i], err = contentOfPath(ctx, f.t, p.path, true); err != nil {
				return nil, err
			}
		}
	}
	return sums, nil
}

// splitWildcards splits a cleaned path before the first component with a
// wildcard.
func splitWildcards(p string) (fixed, pattern string) {
	parts := strings.Split(p, "/")
	i := slices.IndexFunc(parts, containsWildcards)
	if i < 0 {
		return p, ""
	}
	fixed = strings.Join(parts[:i], "/")
	if fixed == "" && strings.HasPrefix(p, "/") {
		fixed = "/"
	}
	return fixed, strings.Join(parts[i:], "/")
}

// containsWildcards says whether path.Match would treat name as a pattern.
func containsWildcards(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}
