package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"den/internal/dockerd"
	"den/internal/socket"
)

// listen opens all addresses, or takes over those that this process had before it became den
// in a user namespace.
func (o *serveOptions) listen(ctx context.Context) (all []*socket.Listener, err error) {
	if all, err = socket.Inherit(); err != nil || len(all) > 0 {
		return all, err
	}
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			all = nil
		}
	}()
	hosts := o.hosts
	if len(hosts) == 0 {
		hosts = []string{"unix://" + dockerd.DefaultSocket(callerUID(), os.Getenv, writableDir)}
	}
	if o.refuse != "" && !slices.Contains(hosts, o.refuse) {
		hosts = append(hosts, o.refuse)
	}
	gid, err := socketGroup(o.group)
	if err != nil {
		return nil, err
	}
	port := socket.PlainPort
	if o.tls || o.tlsVerify {
		port = socket.TLSPort
	}
	var seen []string
	for _, host := range hosts {
		a, err := socket.Parse(host, port)
		if err != nil {
			return all, err
		}
		if slices.Contains(seen, a.String()) {
			continue
		}
		seen = append(seen, a.String())
		ls, err := socket.Listen(ctx, a, socket.Options{GID: gid})
		if err != nil && host == o.refuse {
			continue // a health check's port that is taken is somebody else's to answer
		}
		if err != nil {
			return all, err
		}
		if host == o.refuse {
			for _, l := range ls {
				l.Address = a // "0.0.0.0" listens as "[::]"
			}
			o.refuse = a.String()
		}
		all = append(all, ls...)
	}
	return all, nil
}

func writableDir(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }

// socketGroup is the number of the group that may use the socket, -1 for none.
func socketGroup(name string) (int, error) {
	if name == "" {
		if g, err := osuser.LookupGroup("docker"); err == nil && os.Geteuid() == 0 {
			return strconv.Atoi(g.Gid)
		}
		return -1, nil
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	g, err := osuser.LookupGroup(name)
	if err != nil {
		return -1, fmt.Errorf("--group: %w; name one of /etc/group, or give its number", err)
	}
	return strconv.Atoi(g.Gid)
}

// certificates are those that TCP listeners show; nil for plain HTTP.
func (o *serveOptions) certificates(notice func(string)) (*tls.Config, error) {
	if o.certDir != "" {
		files, err := socket.Certificates(o.certDir, socket.Names(os.Getenv("DOCKER_TLS_SAN")))
		if err != nil {
			return nil, err
		}
		o.files.CA, o.files.Cert, o.files.Key = cmp.Or(o.files.CA, files.CA), cmp.Or(o.files.Cert, files.Cert), cmp.Or(o.files.Key, files.Key)
		notice("certificates for clients are in " + filepath.Join(o.certDir, "client"))
	}
	if !o.tls && !o.tlsVerify {
		return nil, nil
	}
	dir := os.Getenv("DOCKER_CERT_PATH")
	if home, err := os.UserHomeDir(); dir == "" && err == nil {
		dir = filepath.Join(home, ".docker")
	}
	return socket.ServerFiles{
		CA: cmp.Or(o.files.CA, filepath.Join(dir, "ca.pem")), Cert: cmp.Or(o.files.Cert, filepath.Join(dir, "cert.pem")), Key: cmp.Or(o.files.Key, filepath.Join(dir, "key.pem")),
	}.Config(o.tlsVerify)
}

// placeStore puts the store where dockerd keeps its things, unless the environment or a flag says
// where it is, and the engine's identity beside it. A data root that another engine uses
// already is not refused: this one gets a place of its own in it.
func (o *serveOptions) placeStore(g *globals) error {
	root := g.dataRoot
	if root == "" {
		root = dockerd.DefaultDataRoot(callerUID(), os.Getenv, writableDir)
	}
	if g.store == "" && os.Getenv("DEN_STORE") == "" {
		g.store = filepath.Join(root, "den")
	}
	for n := range maxEngines {
		dir := filepath.Join(root, "den-engines", strconv.Itoa(n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("--data-root: %w; mount a volume there that can be written, or name another directory", err)
		}
		held, err := holdEngine(dir)
		if err != nil {
			return fmt.Errorf("--data-root: %w", err)
		}
		if held {
			g.dataRoot = dir
			return nil
		}
	}
	return fmt.Errorf("--data-root %s: %d engines use it already; name another directory", root, maxEngines)
}

// maxEngines bounds how many engines one data root has.
const maxEngines = 1000

// holdEngine locks an engine's directory for as long as this program runs.
func holdEngine(dir string) (bool, error) {
	fd, err := unix.Open(filepath.Join(dir, "serve.lock"), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, unix.Close(fd)
	}
	if err != nil {
		unix.Close(fd)
		return false, fmt.Errorf("lock %s: %w", dir, err)
	}
	return true, nil
}
