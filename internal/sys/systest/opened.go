// Package systest watches what is opened in a store, for tests which claim
// that something costs the same however much the store holds.
package systest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// objectFolders hold what a store has many of.
var objectFolders = []string{"blobs", "layers", "cache", "pulled", "derived", "cachemount"}

// Opened runs fn and returns what it, or anybody, opened of the objects of the
// store in root: paths relative to root, each once, with how often. What is
// below a layer's wrapper directory is not looked at.
func Opened(t testing.TB, root string, fn func()) map[string]int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Skipf("needs inotify: %v", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	folders := map[int32]string{}
	for _, rel := range foldersOf(t, root) {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(root, rel), unix.IN_OPEN)
		if err != nil {
			t.Fatal(err)
		}
		folders[int32(wd)] = rel
	}
	fn()
	return read(t, fd, folders)
}

// foldersOf lists the directories that hold objects. They are read before any
// is watched.
func foldersOf(t testing.TB, root string) []string {
	t.Helper()
	var rels []string
	for _, top := range objectFolders {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.IsDir() {
				return err
			}
			if _, err := os.Lstat(filepath.Join(path, "meta.json")); err == nil {
				return fs.SkipDir
			}
			rel, err := filepath.Rel(root, path)
			rels = append(rels, rel)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return rels
}

func read(t testing.TB, fd int, folders map[int32]string) map[string]int {
	t.Helper()
	opened := map[string]int{}
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return opened
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			if mask&unix.IN_Q_OVERFLOW != 0 {
				t.Fatal("more was opened than inotify could tell")
			}
			name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:end], "\x00"))
			opened[filepath.Join(folders[wd], name)]++
			b = b[end:]
		}
	}
}
