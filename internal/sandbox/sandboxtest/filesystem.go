package sandboxtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
)

func cwd(b *Bench) {
	b.Link("link", "/tmp/far/away")
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"pwd"}, Cwd: "/srv/new/dir"}))
	b.want(out, "/srv/new/dir\n")
	b.want(b.Changes(), "srv srv/new srv/new/dir")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"pwd"}, Cwd: "/link"}))
	b.want(out, "/tmp/far/away\n")
}

func stubs(b *Bench) {
	old := time.Unix(1000000000, 5)
	b.must(os.MkdirAll(filepath.Join(b.Lower, "opt/old"), 0o755))
	b.must(os.RemoveAll(filepath.Join(b.Lower, "proc")))
	for _, p := range []string{"opt/old", "opt", "etc", "."} {
		b.must(os.Chtimes(filepath.Join(b.Lower, p), old, old))
	}
	b.must(os.Chtimes(b.Upper, old, old))
	src := b.TempDir()
	b.must(os.WriteFile(filepath.Join(src, "f"), []byte("from outside\n"), 0o644))
	r := b.Request("cat /etc/resolv.conf /opt/old/new/deep/f; stat -c %Y /etc /opt/old; touch /run/me")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: filepath.Join(src, "f"), Target: "/etc/resolv.conf", Options: []string{"ro"}},
		{Type: "bind", Source: src, Target: "/opt/old/new/deep", Options: []string{"rbind"}},
		{Type: "tmpfs", Source: "tmpfs", Target: "/run"},
	}
	out, _ := b.Run(r)
	b.want(out, "from outside\nfrom outside\n1000000000\n1000000000\n")
	b.want(b.Changes(), "")
	st, err := os.Stat(b.Upper)
	b.must(err)
	if st.ModTime().Unix() != old.Unix() { // layers have whole seconds
		b.Errorf("the upper directory's time is %v, was %v", st.ModTime(), old)
	}

	r = b.Request("touch /opt/old/mine; chmod 700 /etc")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: src, Target: "/opt/old/new"},
		{Type: "bind", Source: filepath.Join(src, "f"), Target: "/etc/hosts"},
	}
	b.Run(r)
	b.want(b.Changes(), "etc opt opt/old opt/old/mine")
}

func links(b *Bench) {
	outside := b.TempDir()
	b.must(os.WriteFile(filepath.Join(outside, "f"), []byte("x\n"), 0o644))
	up := strings.Repeat("../", 20)
	b.Link("etc/resolv.conf", up+outside+"/made")
	b.Link("etc/hosts", outside+"/also")
	b.Link("data", up+outside)
	b.Link("dev", up+outside)
	b.Link("loop", "/loop")
	r := b.Request("cat /etc/resolv.conf /data/v/f; ls /dev/null")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: filepath.Join(outside, "f"), Target: "/etc/resolv.conf"},
		{Type: "bind", Source: filepath.Join(outside, "f"), Target: "/etc/hosts"},
		{Type: "bind", Source: outside, Target: "/data/v"},
	}
	out, _ := b.Run(r)
	b.want(out, "x\nx\n/dev/null\n")
	entries, err := os.ReadDir(outside)
	b.must(err)
	if len(entries) != 1 {
		b.Errorf("the outer directory has %v now", entries)
	}
	b.want(b.Changes(), "")

	r = b.Request("true")
	r.Mounts = []oci.Mount{{Type: "bind", Source: outside, Target: "/loop/x"}}
	if _, _, err := b.Try(r); !errors.Is(err, unix.ELOOP) {
		b.Errorf("a loop of links: %v", err)
	}
	b.Renew()
	b.must(os.Remove(filepath.Join(b.Lower, "dev")))
	b.Link("proc", "/tmp")
	if noProc(b.Exec) {
		return
	}
	out, _ = b.Run(b.Request("readlink /proc; [ -e /tmp/self/status ] && echo inside"))
	b.want(out, "/tmp\ninside\n")
}

func nested(b *Bench) {
	vol, inner := b.TempDir(), b.TempDir()
	b.must(os.WriteFile(filepath.Join(inner, "f"), []byte("inner\n"), 0o644))
	r := b.Request("cat /v/deep/er/f; touch /v/deep/er/no 2>/dev/null || echo ro; touch /v/yes /tmpfs/ok; ls /tmpfs")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: vol, Target: "/v", Options: []string{"rbind", "rw"}},
		{Type: "bind", Source: inner, Target: "/v/deep/er", Options: []string{"ro"}},
		{Type: "tmpfs", Target: "/tmpfs", Options: []string{"size=1m", "mode=1777"}},
		{Type: "bind", Source: filepath.Join(inner, "f"), Target: "/tmpfs/sub/f"},
	}
	out, _ := b.Run(r)
	b.want(out, "inner\nro\nok\nsub\n")
	if _, err := os.Stat(filepath.Join(vol, "yes")); err != nil {
		b.Error(err)
	}
	b.want(b.Changes(), "")
}

func manyLayers(b *Bench) {
	const n = 300
	dir := b.TempDir()
	r := b.Request("cat /l0 /l299 | tr '\\n' ' '; ls / | grep -c ^l")
	r.Root.Lower = nil
	for i := range n {
		l := filepath.Join(dir, strings.Repeat("0123456789abcdef", 6), "layers", itoa(i))
		b.must(os.MkdirAll(l, 0o755))
		b.must(os.WriteFile(filepath.Join(l, "l"+itoa(i)), []byte(itoa(i)+"\n"), 0o644))
		r.Root.Lower = append(r.Root.Lower, l)
	}
	r.Root.Lower = append(r.Root.Lower, b.Lower)
	out, _ := b.Run(r)
	b.want(out, "0 299 300\n")
}

func itoa(i int) string {
	return strings.TrimLeft(string([]byte{byte('0' + i/100), byte('0' + i/10%10)}), "0") + string(rune('0'+i%10))
}

func subtree(b *Bench) {
	top, bottom := b.TempDir(), b.TempDir()
	b.must(os.MkdirAll(filepath.Join(top, "usr/share"), 0o755))
	b.must(os.MkdirAll(filepath.Join(bottom, "usr/share"), 0o755))
	b.must(os.WriteFile(filepath.Join(top, "usr/share/a"), []byte("a\n"), 0o644))
	b.must(os.WriteFile(filepath.Join(bottom, "usr/share/b"), []byte("b\n"), 0o644))
	b.must(os.Symlink("../../../../etc", filepath.Join(top, "usr/evil")))
	r := b.Request("cat /m/a /m/b /one/b /file; ls /m /one | wc -l; touch /m/x 2>/dev/null || echo ro")
	r.Mounts = []oci.Mount{
		{Type: "overlay", Lower: []string{top, bottom}, Source: "/usr/share", Target: "/m", Options: []string{"ro"}},
		{Type: "overlay", Lower: []string{bottom}, Source: "usr/share", Target: "/one", Options: []string{"ro"}},
	}
	b.must(os.WriteFile(filepath.Join(b.Lower, "file"), []byte("f\n"), 0o644))
	out, _ := b.Run(r)
	b.want(out, "a\nb\nb\nf\n6\nro\n")
	r = b.Request("true")
	r.Mounts = []oci.Mount{{Type: "overlay", Lower: []string{top, bottom}, Source: "/usr/evil/passwd", Target: "/m"}}
	if _, _, err := b.Try(r); !errors.Is(err, unix.ENOENT) {
		b.Errorf("a link out of the subtree: %v", err)
	}
}

func bindRoot(b *Bench) {
	r := b.Request("echo there >/there; cat /there")
	r.Root = oci.Mount{Type: "bind", Source: b.Lower, Target: "/"}
	src := b.TempDir()
	r.Mounts = []oci.Mount{{Type: "bind", Source: src, Target: "/stub/deep"}}
	out, _ := b.Run(r)
	b.want(out, "there\n")
	if _, err := os.Stat(filepath.Join(b.Lower, "there")); err != nil {
		b.Error(err)
	}
	if _, err := os.Stat(filepath.Join(b.Lower, "stub")); err == nil {
		b.Error("the mount point is still there")
	}
}
