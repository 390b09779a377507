package e2e

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// The base images, by the name that a test's Dockerfile calls them: @small is
// busybox and the toolbox, @debian a Debian, @go the small one with this
// machine's Go.
var bases = map[string]func(testing.TB) string{
	"@small":  smallImage,
	"@debian": debianImage,
	"@go":     goImage,
}

var baseName = regexp.MustCompile(`@(small|debian|go)\b`)

// expand replaces base images' names by their references.
func expand(t testing.TB, dockerfile string) string {
	t.Helper()
	return baseName.ReplaceAllStringFunc(dockerfile, func(name string) string { return bases[name](t) })
}

func goarch() string { return runtime.GOARCH }

const basePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var smallImage = once(func() (string, error) {
	tar, err := smallLayer()
	if err != nil {
		return "", err
	}
	return pushBase("e2e/small", containerConfig{Env: []string{basePath}, Cmd: []string{"sh"}}, tar)
})

// smallLayer is smallTar's, made once.
var smallLayer = sync.OnceValues(smallTar)

// smallTar makes the layer of busybox and the toolbox.
func smallTar() (string, error) {
	out := filepath.Join(env.cache, "small.tar")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", errMissing("busybox-static")
	}
	toolbox := filepath.Join(env.cache, "toolbox")
	if err := build(".", toolbox, "./toolbox"); err != nil {
		return "", err
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return "", err
	}
	f, err := os.Create(out)
	if err != nil {
		return "", err
	}
	w := tarWriter{tar.NewWriter(f)}
	for _, dir := range []string{"bin/", "etc/", "home/", "home/app/", "root/", "usr/", "usr/bin/", "var/", "run/", "proc/", "sys/", "dev/"} {
		w.add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	w.add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	w.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
	w.file("etc/group", "root:x:0:\nwww-data:x:33:\nextra:x:44:app\napp:x:1000:\n")
	w.program("bin/busybox", busybox)
	w.program("bin/toolbox", toolbox)
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			w.add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	return out, errors.Join(w.Close(), f.Close())
}

// A tarWriter writes entries with one time and root as owner.
type tarWriter struct{ *tar.Writer }

var baseTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// add writes one entry. What goes wrong shows at Close, as the writer is then broken.
func (w tarWriter) add(h tar.Header, content []byte) {
	h.Size = int64(len(content))
	if h.ModTime.IsZero() {
		h.ModTime = baseTime
	}
	if w.WriteHeader(&h) == nil {
		_, _ = w.Write(content)
	}
}

func (w tarWriter) file(name, text string) {
	w.add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, []byte(text))
}

func (w tarWriter) program(name, path string) {
	b, err := os.ReadFile(path)
	if err == nil {
		w.add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755}, b)
	}
}

// debianImage is a Debian root file system of the distribution's own packages.
var debianImage = once(func() (string, error) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", errMissing("mmdebstrap")
	}
	if os.Geteuid() != 0 {
		return "", errMissing("root for mmdebstrap")
	}
	file, part := filepath.Join(env.cache, "debian.tar"), filepath.Join(env.cache, "debian.part.tar")
	if _, err := os.Stat(file); err != nil {
		cmd := exec.Command("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "--dpkgopt=path-exclude=/usr/share/doc/*",
			"bookworm", part, debianArchive)
		if b, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("mmdebstrap: %w\n%s", err, b)
		}
		if err := os.Rename(part, file); err != nil {
			return "", err
		}
	}
	return pushBase("e2e/debian", containerConfig{Env: []string{basePath}, Cmd: []string{"bash"}}, file)
})

// goImage is the small image and the Go tree that compiled this test.
var goImage = once(func() (string, error) {
	small, err := smallLayer()
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", errMissing("go")
	}
	file := filepath.Join(env.cache, "go.tar")
	if err := goTar(strings.TrimSpace(string(out)), file); err != nil {
		return "", err
	}
	return pushBase("e2e/go", containerConfig{Env: []string{"PATH=/usr/local/go/bin:/bin", "GOTOOLCHAIN=local", "GOPROXY=off", "CGO_ENABLED=0"}, Cmd: []string{"sh"}}, small, file)
})

// goTar packs the parts of a Go tree that compile programs.
func goTar(root, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tarWriter{tar.NewWriter(f)}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		top, _, _ := strings.Cut(rel, "/")
		switch top {
		case ".", "bin", "pkg", "src", "VERSION", "go.env", "lib":
		default:
			return skip(d)
		}
		if d.Name() == "testdata" || rel == "src/cmd" || rel == "pkg/mod" || strings.HasSuffix(rel, "_test.go") {
			return skip(d)
		}
		return w.copy("usr/local/go/"+rel, p, d)
	})
	return errors.Join(err, w.Close(), f.Close())
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// copy adds a directory or a file of the host's.
func (w tarWriter) copy(name, p string, d fs.DirEntry) error {
	fi, err := os.Stat(p)
	if err != nil {
		return err
	}
	if d.IsDir() {
		w.add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		return nil
	}
	in, err := os.Open(p)
	if err != nil {
		return err
	}
	defer in.Close()
	h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(fi.Mode().Perm()), Size: fi.Size(), ModTime: baseTime}
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}
