package store

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"den/internal/failpoint"
	"den/internal/sys"
)

// FormatFile is the file that makes a directory a store: it says what a process must
// understand to use it.
const FormatFile = "den-store.json"

const (
	formatVersion = 1
	// maxJSON bounds every metadata file that the store reads.
	maxJSON = 8 << 20
)

// format is the content of FormatFile, with flags as in ext4: a process that
// does not know one of Incompat may not open the store, one that does not know
// one of ROCompat may only read.
type format struct {
	Format   int      `json:"format"`
	ID       string   `json:"id"`
	Incompat []string `json:"incompat"`
	ROCompat []string `json:"ro_compat"`
}

// knownFlags are the Incompat and ROCompat flags that this den understands.
var knownFlags []string

// probePrefix begins the names of directories that package probe makes for a moment
// in what is to become the store, and removes without being waited for.
const probePrefix = ".den-probe-"

// folders are made with the store; everything else is made when needed.
var folders = []string{"blobs/sha256", "cache", "cachemount", "condemned", "derived", "engines", hostsFolder, "ingest",
	"layers", "lock", "pulled", "reserve", "sync", "tmp", "trash", "volumes", "work"}

// checkFormat reads FormatFile, and makes the store when there is none.
func (s *Store) checkFormat() error {
	f, owner, err := readFormat(s.path(FormatFile))
	if errors.Is(err, os.ErrNotExist) && !s.readOnly {
		if err := s.create(); err != nil {
			return err
		}
		f, owner, err = readFormat(s.path(FormatFile))
	}
	if errors.Is(err, os.ErrNotExist) && s.readOnly && !s.isBase {
		return s.unwritable()
	}
	if err != nil {
		return err
	}
	unknown := func(flag string) bool { return !slices.Contains(knownFlags, flag) }
	if f.Format != formatVersion || slices.ContainsFunc(f.Incompat, unknown) {
		way := "use that one, or another DEN_STORE"
		if s.isBase {
			way = "use that one, or leave out --base-store (DEN_BASE_STORE)"
		}
		return fmt.Errorf("it has format %d %v, made by a newer den; %s: %w", f.Format, f.Incompat, way, errdefs.ErrFailedPrecondition)
	}
	if slices.ContainsFunc(f.ROCompat, unknown) {
		s.readOnly = true
	}
	if euid := os.Geteuid(); !s.readOnly && owner != uint32(euid) {
		return fmt.Errorf("it belongs to uid %d and this is uid %d; processes that write to one store must be of one user "+
			"(or see it through an idmapped mount), set DEN_STORE to another: %w", owner, euid, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// create makes an empty store. Any number of processes may do so at once; the
// format file comes last and the first one stays.
func (s *Store) create() error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// Two processes may be creating it, or trying out what its file system
		// can do; anything else is not ours.
		if !isFolder(e.Name()) && !strings.HasPrefix(e.Name(), probePrefix) && e.Name() != engineIDFile && e.Name() != FormatFile && e.Name() != "lost+found" {
			return fmt.Errorf("the directory holds %q but no %s, so it is not a store; choose an empty one: %w",
				e.Name(), FormatFile, errdefs.ErrFailedPrecondition)
		}
	}
	if err := s.makeFolders(); err != nil {
		return err
	}
	data, err := json.Marshal(format{Format: formatVersion, ID: rand.Text(), Incompat: []string{}, ROCompat: []string{}})
	if err != nil {
		return err
	}
	s.takeBallast()
	tmp := s.path("tmp", "format-"+rand.Text())
	// No epoch covers it: without its content nobody could open the store.
	if err := writeSynced(tmp, append(data, '\n')); err != nil {
		return err
	}
	if err := failpoint.Hit("store.format.rename"); err != nil {
		return errors.Join(err, removeFile(tmp))
	}
	err = sys.RenameNoReplace(tmp, s.path(FormatFile))
	if errors.Is(err, os.ErrExist) {
		return removeFile(tmp)
	}
	// Not locked, so that the collector of the store that somebody else has made
	// meanwhile may have taken it for a dead process's.
	return ignore(err, os.ErrNotExist)
}

func (s *Store) makeFolders() error {
	for _, dir := range folders {
		if err := failpoint.Hit("store.format.mkdir"); err != nil {
			return err
		}
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// writeSynced makes a file whose content is on disk before it gets its name.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err = failpoint.Hit("store.format.write"); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// unwritable is the error for a directory that is no store and cannot become one: a
// volume that belongs to root, say, in a container of another user.
func (s *Store) unwritable() error {
	owner := "somebody else"
	if info, err := os.Stat(s.root); err == nil {
		owner = fmt.Sprintf("uid %d", info.Sys().(*syscall.Stat_t).Uid)
	}
	return fmt.Errorf("the directory holds no store and cannot be written: it belongs to %s and this is uid %d; "+
		"give it to this user, or set DEN_STORE to another: %w", owner, os.Geteuid(), errdefs.ErrFailedPrecondition)
}

func isFolder(name string) bool {
	return slices.ContainsFunc(folders, func(f string) bool {
		top, _, _ := strings.Cut(f, "/")
		return top == name
	})
}

// readFormat returns the format and the uid that the store belongs to.
func readFormat(path string) (format, uint32, error) {
	var f format
	info, err := os.Lstat(path)
	if err != nil {
		return f, 0, err
	}
	data, err := readBounded(path)
	if err != nil {
		return f, 0, err
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return f, 0, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return f, info.Sys().(*syscall.Stat_t).Uid, nil
}

// readBounded reads a metadata file.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(f *os.File) ([]byte, error) {
	// Most are small: one read for the bytes, one for the end.
	data, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if len(data) > maxJSON {
		return nil, fmt.Errorf("read %s: larger than %d bytes", f.Name(), maxJSON)
	}
	return data, nil
}
