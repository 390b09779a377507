package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// floorPeer does the bare work: files by cp and tar, commands by clone, overlay
// and exec, without hashing, layers or records.
type floorPeer struct {
	b      *bench
	fs     string
	w      workload
	uppers []string // of the steps so far, the last first
}

func (b *bench) newFloor(fs string, w workload) peer { return &floorPeer{b: b, fs: fs, w: w} }

func (f *floorPeer) name() string       { return "floor" }
func (f *floorPeer) start() error       { return nil }
func (f *floorPeer) stop()              {}
func (f *floorPeer) stores() []string   { return nil }
func (f *floorPeer) peak() int64        { return 0 }
func (f *floorPeer) prepare(part) error { return nil }

func (f *floorPeer) do(p part) error { return f.w.floor(f, p) }

// run runs a command as it is.
func (f *floorPeer) run(args ...string) error { return f.b.group.run(f.fs, nil, args...) }

// layer is a new directory on top of the others.
func (f *floorPeer) layer() (string, error) {
	up := filepath.Join(f.fs, fmt.Sprint("up", len(f.uppers)))
	f.uppers = append([]string{up}, f.uppers...)
	return up, os.MkdirAll(up, 0o755)
}

// copy copies into a new layer.
func (f *floorPeer) copy(from, to string) error {
	up, err := f.layer()
	if err != nil {
		return err
	}
	to = filepath.Join(up, to)
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), f.run("cp", "-a", from, to))
}

// step runs a shell command in namespaces of its own, over all layers so far.
func (f *floorPeer) step(script string) error {
	lower := f.lower()
	up, err := f.layer()
	if err != nil {
		return err
	}
	root := up + ".root"
	if err := overlay(lower, up, up+".work", root); err != nil {
		return err
	}
	cmd := f.b.group.command("/", nil, "/bin/sh", "-c", script)
	cmd.SysProcAttr.Chroot = root
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return errors.Join(err, syscall.Unmount(root, 0))
}

// lower is the floor's layers and the base, for overlayfs.
func (f *floorPeer) lower() string {
	return strings.Join(append(slices.Clone(f.uppers), filepath.Join(f.b.dir, "root")), ":")
}

// result lets the check's commands run over all layers, and copies what they look at.
func (f *floorPeer) result() (string, error) {
	out := filepath.Join(f.fs, "out", "0")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	if f.w.checkRun != "" {
		if err := f.step(f.w.checkRun); err != nil {
			return "", err
		}
	}
	root := filepath.Join(f.fs, "result")
	if err := overlay(f.lower(), root+".up", root+".work", root); err != nil {
		return "", err
	}
	var err error
	for _, name := range f.w.checkFiles {
		err = errors.Join(err, f.run("cp", "-a", filepath.Join(root, name), out+"/"))
	}
	return filepath.Dir(out), errors.Join(err, syscall.Unmount(root, 0))
}
