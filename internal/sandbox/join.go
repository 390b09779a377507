package sandbox

import (
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// joinOthers is r with the namespaces of running sandboxes that it shares in its specification, by path. They are
// there until the files are closed.
func joinOthers(r *Request) (*Request, []*os.File, error) {
	if r.PIDsOf != nil {
		return nil, nil, fmt.Errorf("sandbox %s: the process ids of another sandbox: %w", r.ID, errdefs.ErrNotImplemented)
	}
	if r.NetworkOf == nil && r.IPCOf == nil {
		return r, nil, nil
	}
	own, spec, linux := *r, *r.Spec, *r.Spec.Linux
	linux.Namespaces = slices.Clone(linux.Namespaces)
	spec.Linux, own.Spec = &linux, &spec
	var files []*os.File
	for _, j := range []struct {
		with Sandbox
		kind specs.LinuxNamespaceType
		file string
	}{
		{r.NetworkOf, specs.NetworkNamespace, "net"}, {r.IPCOf, specs.IPCNamespace, "ipc"},
	} {
		if j.with == nil {
			continue
		}
		f, err := namespaceOf(j.with, j.file)
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("sandbox %s: join %s namespace: %w", r.ID, j.kind, err)
		}
		files = append(files, f)
		linux.Namespaces = slices.DeleteFunc(linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == j.kind })
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: j.kind, Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())})
	}
	return &own, files, nil
}

// namespaceOf opens a namespace of a running sandbox. Who runs after that is who had the process id.
func namespaceOf(s Sandbox, name string) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", s.Pid(), name))
	if serr := s.Signal(unix.Signal(0)); serr != nil {
		if err == nil {
			f.Close()
		}
		return nil, serr
	}
	return f, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
