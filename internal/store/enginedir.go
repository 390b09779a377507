package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// engineName is the default directory of an engine's id, beside the default store:
// not inside, since a volume that jobs share would make them one engine.
const engineName = "den-engine"

// defaultEngine finds the id where nobody says where it is: in the first of dirs
// that is this job's own and can be written.
func (s *Store) defaultEngine(dirs []string) (id string, err error) {
	var why []string
	for _, dir := range dirs {
		if s.shares(dir) {
			why = append(why, dir+" is in the store or on its volume")
			continue
		}
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = checkOwner(dir)
		}
		if err == nil {
			id, err = engineID(filepath.Join(dir, engineIDFile))
		}
		if err == nil {
			return id, nil
		}
		why = append(why, err.Error())
	}
	return "", errors.New(strings.Join(why, "; "))
}

// engineDirs are the places for an engine's id, best first. The last ones go with the
// machine's run or the container.
func engineDirs(euid int, env func(string) string) []string {
	var dirs []string
	add := func(parent string, elem ...string) {
		if filepath.IsAbs(parent) {
			dirs = append(dirs, filepath.Join(append([]string{parent}, elem...)...))
		}
	}
	// Root in a user namespace that a plain user made may not write to /var/lib
	// and is that user in truth.
	if euid == 0 {
		add("/var/lib", engineName)
	}
	add(env("XDG_DATA_HOME"), engineName)
	add(env("HOME"), ".local", "share", engineName)
	add(env("XDG_RUNTIME_DIR"), engineName)
	if euid == 0 {
		add("/run", engineName)
	}
	for _, dir := range []string{os.TempDir(), "/dev/shm"} { // Docker gives read-only containers the latter
		add(dir, fmt.Sprintf("%s-%d", engineName, outerUID()))
	}
	return dirs
}

// checkOwner refuses a directory that somebody else has made, as everybody can
// where temporary files are.
func checkOwner(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.IsDir() && int(st.Uid) == os.Geteuid() && st.Mode&0o022 == 0 {
		return nil
	}
	return &os.PathError{Op: "use", Path: dir, Err: unix.EPERM}
}

// shares reports whether what lies in dir is seen by everybody who has the store:
// because it is inside, or in a container on the same volume.
func (s *Store) shares(dir string) bool {
	for d := dir; ; d = filepath.Dir(d) {
		if sameFile(d, s.root) {
			return true
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	store, dirs, root := sys.MountID(s.root), sys.MountID(nearest(dir)), sys.MountID("/")
	return sharesVolume(store, dirs, root, !sys.InInitialPIDNamespace())
}

// sharesVolume takes the mounts of the store, of a directory and of /. On a machine
// the store's mount is a disk like others. In a container a mount other than that of / is
// a volume, which other jobs may have too. 0 is an unknown mount.
func sharesVolume(store, dir, root uint64, contained bool) bool {
	return contained && store != 0 && dir == store && store != root
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// nearest is dir or the closest directory above it that exists.
func nearest(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// EngineContainers lists the directories of an engine's containers in the store at root, before the store
// is opened: whoever is to enter a user namespace first has to know what lives there. dir is
// Options.EngineDir. An engine that has not named anything has none.
func EngineContainers(root, dir string) []string {
	dirs := []string{dir}
	if dir == "" {
		dirs = engineDirs(os.Geteuid(), os.Getenv)
	}
	var all []string
	for _, d := range dirs {
		id, err := readEngineID(filepath.Join(d, engineIDFile))
		if err != nil || dir == "" && checkOwner(d) != nil {
			continue
		}
		folder := filepath.Join(root, "engines", id, "containers")
		names, _ := readNames(folder)
		for _, name := range names {
			all = append(all, filepath.Join(folder, name))
		}
	}
	return all
}
