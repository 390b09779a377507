package dockerapi

import (
	"net/http"
	"net/url"
	"strings"
)

// A handler answers one operation. An error that it returns before it has written
// anything is answered with the status of the error's class.
type handler func(w http.ResponseWriter, c *call) error

// A route is one operation. Its path has at most one variable, "{name}", which
// takes one segment or more: names of images have slashes.
type route struct {
	method, path string
	handle       handler
	// since is the first version that has the operation; 0 is any.
	since version
}

// A call is one request with what the router found out.
type call struct {
	*http.Request
	server *Server
	// version is the path's, or the newest.
	version version
	// name is the path's variable.
	name  string
	query url.Values
	// hijacked says that the connection is no longer HTTP's.
	hijacked bool
}

// find reads the path and query of c and gives the handler.
func (s *Server) find(c *call) (handler, error) {
	segments := split(c.URL.Path)
	c.version = newest
	if len(segments) > 0 && isVersion(segments[0]) {
		v, err := parseVersion(segments[0][1:])
		if err != nil {
			return nil, err
		}
		c.version, segments = v, segments[1:]
	}
	var err error
	if c.query, err = url.ParseQuery(c.URL.RawQuery); err != nil {
		return nil, invalid("invalid query: %v", err)
	}
	for _, r := range s.table {
		if r.method != c.Method || c.version < r.since {
			continue
		}
		if name, ok := match(split(r.path), segments); ok {
			c.name = name
			return r.handle, nil
		}
	}
	if c.Method == http.MethodOptions { // docker's answer to any
		return func(w http.ResponseWriter, _ *call) error { w.WriteHeader(http.StatusOK); return nil }, nil
	}
	return nil, notFound("page not found")
}

// split gives the segments of a path. Empty ones do not count: docker redirects to
// the path without them.
func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// match compares a route's segments with a path's, and gives the variable.
func match(pattern, path []string) (name string, ok bool) {
	for i, p := range pattern {
		if p[0] != '{' {
			if i >= len(path) || path[i] != p {
				return "", false
			}
			continue
		}
		after := pattern[i+1:]
		end := len(path) - len(after)
		if end <= i {
			return "", false
		}
		for j, a := range after {
			if path[end+j] != a {
				return "", false
			}
		}
		return strings.Join(path[i:end], "/"), true
	}
	return "", len(pattern) == len(path)
}
