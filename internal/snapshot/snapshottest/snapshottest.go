// Package snapshottest is the contract of snapshot drivers, as tests that
// every driver runs.
//
// What a driver records is judged by what a process saw: the merge of its
// changes with the stack must be the root file system as the sandbox left it.
package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/snapshot"
	"den/internal/tree"
)

// Run checks d against the contract. It needs root: images hold other users'
// files, and an overlay has to be mounted. skip has reasons by names of cases.
func Run(t *testing.T, d snapshot.Driver, skip map[string]string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the trees hold other users' files")
	}
	if d == snapshot.Images() {
		d = &imaged{Driver: d, t: t}
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if why := skip[c.name]; why != "" {
				t.Skip(why)
			}
			c.run(t, d)
		})
	}
	t.Run("the empty stack is an empty directory", func(t *testing.T) { emptyStack(t, d) })
	t.Run("a view shows the merge and cannot be written", func(t *testing.T) { viewOfStack(t, d) })
	t.Run("the same layer twice in a stack", func(t *testing.T) { sameLayerTwice(t, d) })
	t.Run("an opaque root hides the stack below", func(t *testing.T) { opaqueRoot(t, d) })
	t.Run("the root keeps its owner and mode", func(t *testing.T) { rootKeepsItsMode(t, d) })
}

// Tree is a layer for tests.
type Tree struct {
	dirs   []string
	diffID oci.Digest
}

// Dirs are the tree's directories.
func (t *Tree) Dirs() []string { return t.dirs }

// Hold is empty: the test's own directory outlives everything.
func (t *Tree) Hold() []*os.File { return nil }

// DiffID names the layer.
func (t *Tree) DiffID() oci.Digest { return t.diffID }

// Close does nothing.
func (t *Tree) Close() error { return nil }

// imaged gives a driver the trees and drafts of the cases in image form.
type imaged struct {
	snapshot.Driver
	t    *testing.T // outlives the cases
	made map[string]string
}

func (f *imaged) trees(stack []snapshot.Tree) ([]snapshot.Tree, error) {
	var out []snapshot.Tree
	for _, tr := range stack {
		image := &Tree{diffID: tr.DiffID()}
		for _, dir := range tr.Dirs() {
			path, err := f.image(dir)
			if err != nil {
				return nil, err
			}
			image.dirs = append(image.dirs, path)
		}
		out = append(out, image)
	}
	return out, nil
}

func (f *imaged) image(dir string) (string, error) {
	if path, ok := f.made[dir]; ok {
		return path, nil
	}
	path := filepath.Join(tempDir(f.t), "image")
	if err := layer.Create(context.Background(), path, layer.WalkUpper(dir), layer.UnpackOptions{Image: true}); err != nil {
		return "", err
	}
	if f.made == nil {
		f.made = map[string]string{}
	}
	f.made[dir] = path
	return path, nil
}

// Prepare is the driver's.
func (f *imaged) Prepare(ctx context.Context, stack []snapshot.Tree, d snapshot.Draft) (*snapshot.Active, error) {
	trees, err := f.trees(stack)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(d.FS()); err != nil { // an image has yet to be made
		return nil, err
	}
	return f.Driver.Prepare(ctx, trees, d)
}

// View is the driver's.
func (f *imaged) View(ctx context.Context, stack []snapshot.Tree) (*snapshot.Active, error) {
	trees, err := f.trees(stack)
	if err != nil {
		return nil, err
	}
	return f.Driver.View(ctx, trees)
}

// Draft is a draft for tests.
type Draft struct{ dir string }

// FS is the tree in the making.
func (d *Draft) FS() string { return filepath.Join(d.dir, "fs") }

// Work is an empty directory beside it.
func (d *Draft) Work() string { return filepath.Join(d.dir, "work") }

// Close leaves the removal to the test.
func (d *Draft) Close() error { return nil }

// NewDraft makes a draft in a temporary directory.
func NewDraft(t testing.TB) *Draft {
	t.Helper()
	d := &Draft{dir: tempDir(t)}
	for _, dir := range []string{d.FS(), d.Work()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// tempDir is a temporary directory on which an overlay can be.
func tempDir(t testing.TB) string {
	t.Helper()
	return t.TempDir()
}

// NewTree builds a layer of files in any order.
func NewTree(t testing.TB, files ...layer.File) *Tree {
	t.Helper()
	dir := tempDir(t)
	slices.SortFunc(files, func(a, b layer.File) int { return layer.ComparePaths(a.Path, b.Path) })
	a, err := layer.Build(context.Background(), dir, func(yield func(layer.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}, layer.UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &Tree{dirs: []string{dir}, diffID: a.DiffID}
}

var then = time.Unix(1600000000, 0)

// File is a regular file of an ordinary user.
func File(path, content string) layer.File {
	return layer.File{
		Entry: oci.Entry{Path: path, Mode: unix.S_IFREG | 0o644, UID: 1000, GID: 100, Size: int64(len(content)), ModTime: then},
		Open:  func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

// Dir is a directory.
func Dir(path string) layer.File {
	return layer.File{Entry: oci.Entry{Path: path, Mode: unix.S_IFDIR | 0o755, ModTime: then}}
}

// Link is a symbolic link.
func Link(path, target string) layer.File {
	return layer.File{Entry: oci.Entry{Path: path, Mode: unix.S_IFLNK | 0o777, Link: target, ModTime: then}}
}

// Hard is another name of a file.
func Hard(path, target string) layer.File {
	return layer.File{Entry: oci.Entry{Path: path, Mode: unix.S_IFREG | 0o644, Hardlink: true, Link: target}}
}

// Whiteout removes a path from the layers below.
func Whiteout(path string) layer.File {
	return layer.File{Entry: oci.Entry{Path: path, Whiteout: true}}
}

// mount makes m's content visible and returns where. Unmounting is done by the
// returned function, and at the end of the test in any case.
func mount(t *testing.T, m oci.Mount) (string, func()) {
	t.Helper()
	switch m.Type {
	case "bind":
		return m.Source, func() {}
	case "tmpfs":
		target := tempDir(t)
		if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
			t.Skipf("needs mounts: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
		return target, func() {}
	case "overlay":
	default:
		t.Fatalf("mount of type %q", m.Type)
	}
	finish := func() {}
	if isImage(m) {
		m, finish = unpacked(t, m)
	}
	target := tempDir(t)
	options := "lowerdir=" + strings.Join(m.Lower, ":")
	if m.Upper != "" {
		options += ",upperdir=" + m.Upper + ",workdir=" + m.Work
	}
	flags := uintptr(0)
	for _, o := range m.Options {
		if o == "ro" {
			flags |= unix.MS_RDONLY
			continue
		}
		options += "," + o
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		t.Skipf("needs overlay mounts (%s): %v", options, err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			finish()
		}
	}
	t.Cleanup(unmount)
	return target, unmount
}

func isImage(m oci.Mount) bool {
	for _, path := range append([]string{m.Upper}, m.Lower...) {
		if fi, err := os.Stat(path); path != "" && (err != nil || fi.Mode().IsRegular()) {
			return true
		}
	}
	return false
}

// unpacked does what an executor for images does, with the kernel's overlay:
// finish writes the changes.
func unpacked(t *testing.T, m oci.Mount) (oci.Mount, func()) {
	t.Helper()
	var lower []string
	for _, path := range m.Lower {
		dir := tempDir(t)
		if err := layer.Create(context.Background(), dir, layer.WalkUpper(path), layer.UnpackOptions{}); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, dir)
	}
	lower = append(lower, tempDir(t)) // the kernel wants two, or an upper
	if m.Upper == "" {
		return snapshot.OverlayMount(lower, "", "", nil), func() {}
	}
	upper := filepath.Join(tempDir(t), "upper")
	var root unix.Stat_t
	err := unix.Stat(lower[0], &root)
	if err == nil {
		err = errors.Join(os.Mkdir(upper, 0o755), os.Chown(upper, int(root.Uid), int(root.Gid)), unix.Chmod(upper, root.Mode&0o7777))
	}
	if err != nil {
		t.Fatal(err)
	}
	return snapshot.OverlayMount(lower, upper, tempDir(t), nil), func() {
		if err := layer.Create(context.Background(), m.Upper, layer.WalkUpper(upper), layer.UnpackOptions{Image: true}); err != nil {
			t.Error(err)
		}
	}
}

// contract is one case: what a stack holds and what happens to it.
type contract struct {
	name   string
	stack  func(t *testing.T) []snapshot.Tree
	change func(root string) error
	// want are the changes, parents' times aside; nil leaves it to the merge.
	want []string
}

func (c *contract) run(t *testing.T, d snapshot.Driver) {
	ctx := context.Background()
	stack := c.stack(t)
	before := digests(t, stack)
	draft := NewDraft(t)
	a, err := d.Prepare(ctx, stack, draft)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	root, unmount := mount(t, a.Root)
	if d := cmp.Diff(merged(t, nil, stack), listing(t, root)); d != "" {
		t.Fatalf("a fresh root is not the merged stack (-stack +root):\n%s", d)
	}
	if err := c.change(root); errors.Is(err, unix.EXDEV) {
		t.Skip("needs rename of a directory of the stack, which the kernel refuses on this mount")
	} else if err != nil {
		t.Fatal(err)
	}
	left := listing(t, root)
	unmount()
	if err := d.Changes(ctx, a); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(left, merged(t, []string{a.Upper()}, stack)); d != "" {
		t.Errorf("the changes over the stack are not what the process left (-left +merged):\n%s", d)
	}
	if c.want != nil {
		if d := cmp.Diff(c.want, upper(t, a.Upper())); d != "" {
			t.Errorf("changes (-want +got):\n%s", d)
		}
	}
	applied, err := snapshot.Commit(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, a.Upper(), applied, left, stack)
	if d := cmp.Diff(before, digests(t, stack)); d != "" {
		t.Errorf("a tree of the stack was changed:\n%s", d)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// roundTrip checks that the layer means the same on another machine.
func roundTrip(t *testing.T, dir string, applied layer.Applied, left []string, stack []snapshot.Tree) {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		_, err := layer.WriteTar(context.Background(), w, layer.WalkUpper(dir))
		_ = w.CloseWithError(err)
	}()
	other := tempDir(t)
	got, err := layer.Unpack(context.Background(), r, other, layer.UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got != applied {
		t.Errorf("Commit says %+v, the tar is %+v", applied, got)
	}
	if d := cmp.Diff(left, merged(t, []string{other}, stack)); d != "" {
		t.Errorf("the layer unpacked elsewhere gives another tree (-left +merged):\n%s", d)
	}
}

func digests(t *testing.T, stack []snapshot.Tree) []string {
	t.Helper()
	var out []string
	for _, tr := range stack {
		for _, dir := range tr.Dirs() {
			a, err := layer.WriteTar(context.Background(), io.Discard, layer.WalkUpper(dir))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, a.DiffID.String())
		}
	}
	return out
}

// merged lists the stack under the directories top.
func merged(t *testing.T, top []string, stack []snapshot.Tree) []string {
	t.Helper()
	dirs := append([]string{}, top...)
	for i := len(stack) - 1; i >= 0; i-- {
		dirs = append(dirs, stack[i].Dirs()...)
	}
	v, err := tree.Stack(dirs)
	if err != nil {
		t.Fatal(err)
	}
	return list(t, v)
}

func listing(t *testing.T, root string) []string {
	t.Helper()
	v, err := tree.Dir(root)
	if err != nil {
		t.Fatal(err)
	}
	return list(t, v)
}

// list describes a view in lines, down to seconds; the root's own time is not
// part of any layer.
func list(t *testing.T, v tree.FS) []string {
	t.Helper()
	defer func() { _ = v.Close() }()
	var out []string
	err := tree.Walk(v, ".", func(e *oci.Entry) error {
		line := fmt.Sprintf("%s %#o %d:%d", e.Path, e.Mode, e.UID, e.GID)
		if e.Path != "." {
			line += fmt.Sprintf(" %d", e.ModTime.Unix())
		}
		if e.Mode&unix.S_IFMT == unix.S_IFREG && !e.Hardlink {
			f, err := v.Open(e.Path)
			if err != nil {
				return err
			}
			data, err := io.ReadAll(f)
			_ = f.Close()
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", data)
		}
		if len(e.Xattrs) > 0 && !e.Hardlink {
			line += fmt.Sprintf(" %q", e.Xattrs)
		}
		out = append(out, fmt.Sprintf("%s %s %d", line, e.Link, e.Rdev))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// upper lists a tree in overlay form by names.
func upper(t *testing.T, dir string) []string {
	t.Helper()
	out := []string{}
	for f, err := range layer.WalkUpper(dir) {
		if err != nil {
			t.Fatal(err)
		}
		line := f.Path
		switch {
		case f.Path == ".":
			continue
		case f.Whiteout:
			line += " removed"
		case f.Hardlink:
			line += " = " + f.Link
		case f.Opaque:
			line += " opaque"
		}
		out = append(out, line)
	}
	return out
}
