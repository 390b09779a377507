package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDefaultRootIsTheFirstThatCanBeWritten(t *testing.T) {
	tmp, home := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	volume := filepath.Join(home, "volume")
	must(t, os.MkdirAll(filepath.Join(volume, ".local/share/den"), 0o755))
	for _, c := range []struct {
		name     string
		euid     int
		home     string
		writable []string // and what is below
		want     string
	}{
		{"root", 0, home, []string{"/var/lib", home, tmp}, "/var/lib/den"},
		{"image without /var/lib", 0, home, []string{"/"}, "/var/lib/den"},
		{"read-only container with a volume", 0, home, []string{"/var/lib/den"}, "/var/lib/den"},
		{"read-only container with a volume for a plain user", 1000, home, []string{"/var/lib/den"}, "/var/lib/den"},
		{"read-only container", 0, home, []string{tmp}, tmp + "/den-*"},
		{"nothing can be written", 0, home, nil, "/var/lib/den"},
		{"plain user", 1000, home, []string{home, tmp}, home + "/.local/share/den"},
		{"plain user without a home", 1000, "", []string{tmp}, tmp + "/den-*"},
		{"plain user whose home is somebody else's", 1000, home, []string{tmp}, tmp + "/den-*"},
		{"plain user whose volume is somebody else's", 1000, volume, []string{tmp}, volume + "/.local/share/den"},
		{"plain user who can write nothing", 1000, home, nil, home + "/.local/share/den"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := func(name string) string { return map[string]string{"HOME": c.home}[name] }
			got := defaultRoot(c.euid, env, func(dir string) bool {
				return slices.ContainsFunc(c.writable, func(w string) bool { return strings.HasPrefix(dir+"/", strings.TrimSuffix(w, "/")+"/") })
			})
			if ok, err := filepath.Match(c.want, got); err != nil || !ok {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
