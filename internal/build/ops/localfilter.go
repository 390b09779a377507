package ops

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
)

// localFilter says which part of a directory belongs to the context. Its rules
// are those of fsutil.NewFilterFS, which docker's client and BuildKit use.
type localFilter struct {
	Include []string `json:"include,omitempty"`
	Exclude []string `json:"exclude,omitempty"`
	Follow  []string `json:"follow,omitempty"`
}

// resolve turns the follow paths into include patterns: themselves, and what
// the symbolic links on their way point to, as the directory is now.
func (f localFilter) resolve(dir string) (localFilter, error) {
	if f.Follow == nil {
		return f, nil
	}
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		return f, err
	}
	targets, err := fsutil.FollowLinks(fs, f.Follow)
	if err != nil {
		return f, err
	}
	out := localFilter{Include: slices.Clone(f.Include), Exclude: f.Exclude}
	if targets != nil {
		out.Include = localWithoutNested(append(out.Include, targets...))
	}
	return out, nil
}

// localWithoutNested drops paths below others; nil, which is no filter, when
// the root is among them.
func localWithoutNested(paths []string) []string {
	out := make([]string, 0, len(paths))
	var last string
	for _, p := range paths {
		if p == "." {
			return nil
		}
		if strings.HasPrefix(p, last+"/") {
			continue
		}
		out = append(out, p)
		last = p
	}
	return out
}

// localMatcher applies a resolved filter to paths, parents before children. It
// is for one goroutine: patternmatcher compiles its patterns when first used.
type localMatcher struct {
	include, exclude *patternmatcher.PatternMatcher
	// includePrefixes are the include patterns when all of them are plain
	// paths, so that a directory none of them leads into need not be read;
	// exceptionPrefixes the "!" exclude patterns, likewise.
	includePrefixes, exceptionPrefixes []string
	prunesInclude, prunesExclude       bool
}

// localMatch is what matching a directory says about its children.
type localMatch struct {
	include, exclude patternmatcher.MatchInfo
}

func newLocalMatcher(f localFilter) (*localMatcher, error) {
	m := &localMatcher{}
	var err error
	if len(f.Include) > 0 {
		if m.include, err = patternmatcher.New(f.Include); err != nil {
			return nil, fmt.Errorf("include patterns %.200q: %w: %w", f.Include, err, errdefs.ErrInvalidArgument)
		}
		m.includePrefixes, m.prunesInclude = localPrefixes(m.include, false)
	}
	if len(f.Exclude) > 0 {
		if m.exclude, err = patternmatcher.New(f.Exclude); err != nil {
			return nil, fmt.Errorf("exclude patterns %.200q: %w: %w", f.Exclude, err, errdefs.ErrInvalidArgument)
		}
		m.exceptionPrefixes, m.prunesExclude = localPrefixes(m.exclude, true)
	}
	return m, nil
}

// localPrefixes returns the patterns with that exclusion mark as directory
// prefixes, and whether all of them are plain paths.
func localPrefixes(pm *patternmatcher.PatternMatcher, exclusion bool) ([]string, bool) {
	var out []string
	for _, p := range pm.Patterns() {
		if p.Exclusion() != exclusion {
			continue
		}
		s := strings.TrimSuffix(strings.TrimSuffix(p.String(), "/**"), "/*")
		if strings.ContainsAny(s, `*[]?^\`) {
			return nil, false
		}
		out = append(out, s+"/")
	}
	return out, true
}

// localVerdict is what the filter says about one path.
type localVerdict int

const (
	localTake localVerdict = iota
	// localPass leaves a directory out unless something below it is taken.
	localPass
	// localDrop leaves the path out, and all below it.
	localDrop
)

// match judges path, whose parent directory was judged before with the result
// parent; the zero localMatch is the root's.
func (m *localMatcher) match(path string, isDir bool, parent localMatch) (localVerdict, localMatch, error) {
	var out localMatch
	verdict := localTake
	if m.include != nil {
		ok, info, err := m.include.MatchesUsingParentResults(path, parent.include)
		if err != nil {
			return localDrop, out, fmt.Errorf("include patterns: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		out.include = info
		if !ok {
			if !isDir || m.prunesInclude && !localLeadsInto(path, m.includePrefixes) {
				return localDrop, out, nil
			}
			verdict = localPass
		}
	}
	if m.exclude != nil {
		excluded, info, err := m.exclude.MatchesUsingParentResults(path, parent.exclude)
		if err != nil {
			return localDrop, out, fmt.Errorf("exclude patterns: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		out.exclude = info
		if excluded {
			if !isDir || m.prunesExclude && !localLeadsInto(path, m.exceptionPrefixes) {
				return localDrop, out, nil
			}
			verdict = localPass
		}
	}
	return verdict, out, nil
}

// localLeadsInto says whether the directory dir lies on the way to one of the
// prefixes.
func localLeadsInto(dir string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}
