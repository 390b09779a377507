package store

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// SystemRoot is the default store of root, and of everybody whom the outer container
// gives a volume there.
const SystemRoot = "/var/lib/den"

// DefaultRoot is where the store is when nobody says otherwise: $DEN_STORE, else
// /var/lib/den where that can be written, else a directory in the user's home, and
// one among the temporary files where there is no home to write to.
func DefaultRoot() string {
	if dir := os.Getenv("DEN_STORE"); dir != "" {
		return dir
	}
	return defaultRoot(os.Geteuid(), os.Getenv, writable)
}

// defaultRoot chooses so that what a command makes does not change what the next one
// chooses: an image may have no /var/lib yet, and a container's root may be read-only.
func defaultRoot(euid int, env func(string) string, writable func(string) bool) string {
	// Root in a user namespace that a plain user made may not write to /var/lib
	// and is that user in truth.
	if writable(SystemRoot) {
		return SystemRoot
	}
	tmp := filepath.Join(os.TempDir(), fmt.Sprintf("den-%d", outerUID()))
	home := userRoot(env)
	if home == "" {
		home = tmp
	}
	switch {
	case writable(home), nearest(home) == home: // a store, or volume, that somebody else owns is worth an error
		return home
	case writable(tmp):
		return tmp
	case euid == 0:
		return SystemRoot
	}
	return home
}

// userRoot is a plain user's store, "" for one without a home.
func userRoot(env func(string) string) string {
	if dir := env("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "den")
	}
	if home := env("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "share", "den")
	}
	return ""
}

// writable reports whether dir can be written, or made.
func writable(dir string) bool { return unix.Access(nearest(dir), unix.W_OK) == nil }

// outerUID is the effective user as the namespace around den's own calls it, so
// that a plain user's files among the temporary ones have one name in and out of it.
func outerUID() uint32 {
	euid := uint32(os.Geteuid())
	maps, _ := sys.SelfIDMap("uid")
	for _, m := range maps {
		if m.Inside <= euid && euid-m.Inside < m.Count {
			return m.Outside + euid - m.Inside
		}
	}
	return euid
}
