package engine

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/sys/user"

	"den/internal/tree"
)

// environment is the image's, overridden by the request's; later entries win
// and each name appears once.
func (c *container) environment(home string) []string {
	env := c.ownEnvironment(c.request.TTY)
	return withHome(overlaid(env), home)
}

// execEnvironment is that of a program that is started in the container later.
func (c *container) execEnvironment(home string, x *ExecConfig) []string {
	return withHome(overlaid(append(c.ownEnvironment(x.TTY), x.Env...)), home)
}

func (c *container) ownEnvironment(terminal bool) []string {
	env := []string{defaultPath, "HOSTNAME=" + c.hostname()}
	if terminal {
		env = append(env, "TERM=xterm")
	}
	return append(append(env, c.config.Config.Env...), c.request.Env...)
}

func withHome(env []string, home string) []string {
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		env = append(env, "HOME="+home)
	}
	return env
}

// overlaid lets later entries win.
func overlaid(env []string) []string {
	index := map[string]int{}
	var out []string
	for _, e := range env {
		name, _, ok := strings.Cut(e, "=")
		if !ok { // NAME alone takes it away
			if i, seen := index[name]; seen {
				out[i] = ""
				delete(index, name)
			}
			continue
		}
		if i, seen := index[name]; seen {
			out[i] = e
			continue
		}
		index[name] = len(out)
		out = append(out, e)
	}
	return slices.DeleteFunc(out, func(e string) bool { return e == "" })
}

// maxUserFile bounds what is read of an image's passwd and group files.
const maxUserFile = 16 << 20

// lookupUser resolves USER[:GROUP] against the image's own files.
func (c *container) lookupUser(spec string) (*user.ExecUser, error) {
	passwd, err := c.readFile("/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := c.readFile("/etc/group")
	if err != nil {
		return nil, err
	}
	who, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return nil, invalid("%v", err) // docker's text: unable to find user ...
	}
	if len(c.request.GroupAdd) > 0 {
		more, err := user.GetAdditionalGroups(c.request.GroupAdd, bytes.NewReader(group))
		if err != nil {
			return nil, invalid("%v", err)
		}
		who.Sgids = append(who.Sgids, more...)
	}
	return who, nil
}

// readFile reads a file of the image; one that is missing is empty.
func (c *container) readFile(name string) ([]byte, error) {
	p, err := tree.Resolve(c.view, name)
	if err != nil {
		return nil, err
	}
	r, err := c.view.Open(p)
	if err != nil {
		return nil, nil // an image without users is common
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxUserFile))
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	return b, nil
}
