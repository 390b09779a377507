package sentry_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
	"den/internal/sys"
)

// keeper makes a bench and a volume on a file system that keeps owners for
// whoever runs the test.
func keeper(t *testing.T) (*sandboxtest.Bench, string) {
	t.Helper()
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	vol := t.TempDir()
	if err := unix.Setxattr(vol, "user.trial", []byte("y"), 0); err != nil {
		t.Skipf("%s keeps no user attributes: %v", vol, err)
	}
	return b, vol
}

// in runs a script with the volume at /vol.
func in(b *sandboxtest.Bench, vol, script string) string {
	b.Helper()
	r := b.Request("cd /vol; " + script)
	r.Mounts = []oci.Mount{{Type: "bind", Source: vol, Target: "/vol"}}
	out, exit := b.Run(r)
	if exit.Code != 0 {
		b.Errorf("exit %d\n%s", exit.Code, out)
	}
	return out
}

func TestOwnersInAVolumeOutliveTheSandbox(t *testing.T) {
	b, vol := keeper(t)
	const look = "for f in . dir dir/file dir/su dir/link dir/none dir/null dir/pipe roots; do stat -c '%n %u:%g %a %F' $f; done"
	first := in(b, vol, `set -e
		mkdir dir && echo hi >dir/file && touch dir/su dir/none roots
		ln -s file dir/link && mknod dir/null c 1 3 && mknod dir/pipe p
		chown -R 70:71 dir && chown 0:5 dir/su && chmod 6755 dir/su && chmod 0 dir/none && chmod 1777 dir
		chown -h 8:9 dir/link && chmod 2750 . && chown 26:26 .
		echo ignored >dir/null
		`+look)
	want := `. 26:26 2750 directory
dir 70:71 1777 directory
dir/file 70:71 644 regular file
dir/su 0:5 6755 regular empty file
dir/link 8:9 777 symbolic link
dir/none 70:71 0 regular empty file
dir/null 70:71 644 character special file
dir/pipe 70:71 644 fifo
roots 0:0 644 regular empty file
`
	if first != want {
		t.Errorf("in the sandbox:\n%swant:\n%s", first, want)
	}
	if second := in(b, vol, look); second != want {
		t.Errorf("in the second sandbox:\n%swant:\n%s", second, want)
	}
	if sys.MayChown() {
		return
	}
	seen := map[string]oci.Entry{}
	for f, err := range layer.WalkRecorded(vol) {
		if err != nil {
			t.Fatal(err)
		}
		seen[f.Path] = f.Entry
	}
	if e := seen["dir/su"]; e.Mode != unix.S_IFREG|0o6755 || e.GID != 5 {
		t.Errorf("den reads %+v", e)
	}
	if err := sys.RemoveTree(filepath.Join(vol, "dir")); err != nil {
		t.Errorf("den cannot remove it: %v", err)
	}
}

func TestUserOfASandboxIsHeldToModesInAVolume(t *testing.T) {
	b, vol := keeper(t)
	out := in(b, vol, `set -e
		mkdir private && chown 70:70 private && chmod 700 private && echo secret >private/key && chown 70:70 private/key && chmod 400 private/key
		echo root >roots && chmod 600 roots`)
	if out != "" {
		t.Error(out)
	}
	r := b.Request("cd /vol; id -u; cat private/key; cat roots; echo x >private/new && echo made; echo y >new")
	r.Spec.Process.User.UID, r.Spec.Process.User.GID = 70, 70
	r.Mounts = []oci.Mount{{Type: "bind", Source: vol, Target: "/vol"}}
	out, _ = b.Run(r)
	if !strings.Contains(out, "70\n") || !strings.Contains(out, "secret\n") || strings.Count(out, "ermission denied") != 2 || !strings.Contains(out, "made") {
		t.Errorf("as user 70:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(vol, "private/new")); err != nil && !os.IsPermission(err) {
		t.Error(err)
	}
}
