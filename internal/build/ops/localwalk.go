package ops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// localHashBatch bounds what one hashing task of a walk reads, in files and in
// bytes, so that one large directory keeps all cores busy.
const (
	localHashBatchFiles = 64
	localHashBatchBytes = 8 << 20
)

// localEntry is one path of a walked directory, as a build sees it.
type localEntry struct {
	oci.Entry
	// stat is what the entry was recognised by; a file that has another one
	// when it is opened was changed meanwhile.
	stat localStat
	// digest is the content hash of this path alone: of a file its header and
	// data, of anything else its header.
	digest localSum
	// racy says that the file was changed so shortly before it was hashed that
	// its times may not show a later change.
	racy     bool
	children []*localEntry // sorted by name
	first    string        // path of the first name of a file with several
	passed   bool          // only in the way to something below
}

// localStat is the part of stat(2) that changes when a file does.
type localStat struct {
	Size, Mtime, Ctime int64 // times in nanoseconds
	Ino                uint64
	Mode               uint32
	Nlink              uint32
}

func newLocalStat(st *unix.Stat_t) localStat {
	return localStat{
		Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
		Ino: st.Ino, Mode: st.Mode, Nlink: uint32(st.Nlink),
	}
}

// same leaves the link count out: another name of a file changes its ctime,
// but not what it holds.
func (s localStat) same(o localStat) bool {
	s.Nlink, o.Nlink = 0, 0
	return s == o
}

// localWalk reads a directory tree with several goroutines: each takes a
// directory or a batch of files to hash from one shared stack.
type localWalk struct {
	root   int // directory file descriptor
	filter localFilter
	known  *localCache

	mu    sync.Mutex
	cond  sync.Cond
	tasks []localTask
	open  int // tasks that are queued or at work
	err   error
}

// localTask is a directory to read, or files to hash.
type localTask struct {
	dir   *localEntry
	match localMatch
	files []*localEntry
}

// walkLocal reads what filter takes of dir and hashes it; what known has
// unchanged is not read. The result is the root.
func walkLocal(ctx context.Context, dir string, filter localFilter, known *localCache) (*localEntry, error) {
	filter, err := filter.resolve(dir)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	root := newLocalEntry(".", &st)
	// The root of a context is the directory it is sent into, not the user's.
	root.Mode = unix.S_IFDIR | 0o755

	w := &localWalk{root: fd, filter: filter, known: known}
	w.cond.L = &w.mu
	w.push(localTask{dir: root})
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { w.work(ctx) })
	}
	wg.Wait()
	if w.err != nil {
		return nil, w.err
	}
	localPrune(root)
	localLinks(root)
	return root, nil
}

func newLocalEntry(p string, st *unix.Stat_t) *localEntry {
	e := &localEntry{stat: newLocalStat(st)}
	e.Path = p
	e.Mode = st.Mode
	e.ModTime = unixTime(st.Mtim)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFBLK, unix.S_IFCHR:
		e.Rdev = st.Rdev
	}
	return e
}

// localPrune drops the directories that were only passed through and led to
// nothing.
func localPrune(e *localEntry) {
	e.children = slices.DeleteFunc(e.children, func(c *localEntry) bool {
		if !c.isDir() {
			return false
		}
		localPrune(c)
		return c.passed && len(c.children) == 0
	})
}

// localLinks marks the second and later names of a file, in the order of
// paths.
func localLinks(root *localEntry) {
	first := map[uint64]string{}
	root.each(func(e *localEntry) {
		if e.isDir() || e.stat.Nlink < 2 {
			return
		}
		if p, ok := first[e.stat.Ino]; ok {
			e.first = p
			return
		}
		first[e.stat.Ino] = e.Path
	})
}

// each calls f for e and all below it, parents first and sorted.
func (e *localEntry) each(f func(*localEntry)) {
	f(e)
	for _, c := range e.children {
		c.each(f)
	}
}

func (e *localEntry) isDir() bool     { return e.Mode&unix.S_IFMT == unix.S_IFDIR }
func (e *localEntry) isRegular() bool { return e.Mode&unix.S_IFMT == unix.S_IFREG }

func (w *localWalk) push(tasks ...localTask) {
	w.mu.Lock()
	w.tasks = append(w.tasks, tasks...)
	w.open += len(tasks)
	w.mu.Unlock()
	w.cond.Broadcast()
}

// work runs tasks until there are none left or one failed.
func (w *localWalk) work(ctx context.Context) {
	m, err := newLocalMatcher(w.filter)
	r := newLocalReader(w.root)
	for {
		w.mu.Lock()
		if err != nil && w.err == nil {
			w.err = err
		}
		for len(w.tasks) == 0 && w.open > 0 && w.err == nil {
			w.cond.Wait()
		}
		if w.err != nil || w.open == 0 {
			w.mu.Unlock()
			w.cond.Broadcast()
			return
		}
		t := w.tasks[len(w.tasks)-1]
		w.tasks = w.tasks[:len(w.tasks)-1]
		w.mu.Unlock()

		if err = ctx.Err(); err == nil {
			err = w.do(ctx, m, r, t)
		}
		w.mu.Lock()
		w.open--
		w.mu.Unlock()
	}
}

func (w *localWalk) do(ctx context.Context, m *localMatcher, r *localReader, t localTask) error {
	if t.dir != nil {
		return w.readDir(m, r, t.dir, t.match)
	}
	for _, e := range t.files {
		if err := r.hash(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// readDir fills dir with what the filter takes of it.
func (w *localWalk) readDir(m *localMatcher, r *localReader, dir *localEntry, match localMatch) error {
	fd, err := openBelow(w.root, dir.Path, unix.O_DIRECTORY)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone since its parent was read
	}
	if err != nil && dir.passed && errors.Is(err, os.ErrPermission) {
		return nil // not ours to read, and nothing of it was asked for
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), dir.Path)
	defer f.Close()
	if err := r.describe(dir, fd); err != nil {
		return err
	}
	names, err := f.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("read directory %s: %w", dir.Path, err)
	}
	var b localBatch
	for _, d := range names {
		p := path.Join(dir.Path, d.Name())
		verdict, below, err := m.match(p, d.IsDir(), match)
		if err != nil {
			return err
		}
		if verdict == localDrop {
			continue
		}
		e, err := r.stat(fd, d.Name(), p)
		if err != nil {
			return err
		}
		if e == nil || e.isDir() != d.IsDir() {
			continue // gone, a socket, or replaced between the two looks
		}
		e.passed = verdict == localPass
		dir.children = append(dir.children, e)
		switch {
		case e.isDir():
			b.tasks = append(b.tasks, localTask{dir: e, match: below})
		case w.known.apply(e):
		case e.isRegular():
			b.add(e)
		default:
			if err := r.hashSpecial(fd, e); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(dir.children, func(a, b *localEntry) int { return strings.Compare(a.Path, b.Path) })
	// The files go on top of the stack: done first, they hold less memory.
	w.push(b.finish()...)
	return nil
}

// localBatch collects files into tasks.
type localBatch struct {
	tasks []localTask
	files []*localEntry
	bytes int64
	full  []localTask
}

func (b *localBatch) add(e *localEntry) {
	b.files = append(b.files, e)
	b.bytes += e.Size
	if len(b.files) >= localHashBatchFiles || b.bytes >= localHashBatchBytes {
		b.flush()
	}
}

func (b *localBatch) flush() {
	if len(b.files) > 0 {
		b.full = append(b.full, localTask{files: b.files})
	}
	b.files, b.bytes = nil, 0
}

func (b *localBatch) finish() []localTask {
	b.flush()
	return append(b.tasks, b.full...)
}

// localAbs is dir as an absolute path without symbolic links.
func localAbs(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
