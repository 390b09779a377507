package ops

import (
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileMaxLinks bounds the symbolic links on the way to one path.
const fileMaxLinks = 255

// cleanFilePath makes p absolute and keeps a trailing "/" or "/.", which mean
// something to a copy.
func cleanFilePath(p string) string {
	clean := path.Join("/", p)
	switch {
	case strings.HasSuffix(p, "/."):
		if clean != "/" {
			clean += "/"
		}
		return clean + "."
	case strings.HasSuffix(p, "/") && clean != "/":
		return clean + "/"
	}
	return clean
}

// rootPath resolves all symbolic links of p inside the view, as continuity's
// fs.RootPath does: what does not exist is taken for a plain name.
func rootPath(v fileView, p string) (string, error) {
	links := 0
	for {
		before := links
		next, err := walkLinks(v, p, &links)
		if err != nil {
			return "", err
		}
		if links == before {
			if clean := path.Join("/", next); clean == next {
				return clean, nil
			}
		}
		p = path.Join("/", next)
	}
}

// rootPathParent is rootPath, but leaves the last component alone unless
// follow is set.
func rootPathParent(v fileView, p string, follow bool) (string, error) {
	p = path.Join("/", p)
	if p == "/" || follow {
		return rootPath(v, p)
	}
	dir, base := path.Split(p)
	dir, err := rootPath(v, dir)
	return path.Join(dir, base), err
}

func walkLinks(v fileView, p string, links *int) (string, error) {
	if p == "/" {
		return p, nil
	}
	dir, base := path.Split(p)
	switch {
	case dir == "":
		next, _, err := walkLink(v, base, links)
		return next, err
	case base == "":
		return walkLinks(v, strings.TrimSuffix(dir, "/"), links)
	}
	dir, err := walkLinks(v, dir, links)
	if err != nil {
		return "", err
	}
	next, isLink, err := walkLink(v, path.Join(dir, base), links)
	if err != nil || !isLink || path.IsAbs(next) {
		return next, err
	}
	return path.Join(dir, next), nil
}

func walkLink(v fileView, p string, links *int) (string, bool, error) {
	p = path.Join("/", p)
	if *links > fileMaxLinks {
		return "", false, pathError("lstat", p, syscall.ELOOP)
	}
	if p == "/" {
		return p, false, nil
	}
	e, err := v.lstat(p)
	switch {
	case isNotExist(err):
		return p, false, nil
	case err != nil:
		return "", false, err
	case e.Mode&unix.S_IFMT != unix.S_IFLNK:
		return p, false, nil
	}
	*links++
	return e.Link, true, nil
}

// resolveWildcards lists what the pattern src matches, as fsutil/copy does:
// sorted, and not what lies in a matched directory. Without a wildcard it is
// src itself, cleaned, which need not exist.
func resolveWildcards(v fileView, src string, follow bool) ([]string, error) {
	fixed, pattern := splitWildcards(path.Clean(src))
	if pattern == "" {
		return []string{fixed}, nil
	}
	base, err := rootPathParent(v, fixed, follow)
	if err != nil {
		return nil, err
	}
	e, err := v.lstat(base)
	if err != nil || !isDir(e) {
		return nil, err
	}
	// "*" and "?" do not match "/", only a class may.
	depth := strings.Count(pattern, "/") + 1
	if strings.Contains(pattern, "[") {
		depth = unix.PathMax
	}
	var out []string
	err = matchBelow(v, base, "", pattern, depth, &out)
	return out, err
}

func matchBelow(v fileView, dir, rel, pattern string, depth int, out *[]string) error {
	list, err := v.readDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := path.Join(rel, e.name)
		if ok, _ := filepath.Match(pattern, name); ok {
			*out = append(*out, path.Join(dir, e.name))
			continue
		}
		if isDir(e.Entry) && depth > 1 {
			if err := matchBelow(v, path.Join(dir, e.name), name, pattern, depth-1, out); err != nil {
				return err
			}
		}
	}
	return nil
}
