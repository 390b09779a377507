package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// liar is a server that does what no server should, by path.
func liar(t *testing.T) string {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("FROM scratch\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), ".git")
		switch name {
		case "file":
			http.Redirect(w, r, "file://"+secret, http.StatusFound)
		case "unix":
			http.Redirect(w, r, "unix:///var/run/docker.sock", http.StatusFound)
		case "loop":
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case "short":
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte("short"))
		case "packed":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte("no gzip"))
		case "garbage":
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			_, _ = w.Write([]byte("001e# service=git-upload-pack\n0000" + strings.Repeat("ffff", 10000)))
		case "endless":
			junk := bytes.Repeat([]byte("x"), 64<<10)
			for {
				if _, err := w.Write(junk); err != nil {
					return
				}
			}
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestServersThatLieAreRefused(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	url := liar(t)
	for _, c := range []struct{ path, word string }{
		{"file", `"file"`}, {"unix", `"unix"`}, {"loop", "redirect"}, {"short", "unexpected EOF"}, {"packed", "EOF"},
		{"file.git", `"file"`}, {"unix.git", `"unix"`}, {"loop.git", "redirect"}, {"short.git", "git "}, {"garbage.git", "git "}, {"absent.git", "git "},
	} {
		d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM scratch\nADD " + url + "/" + c.path + " /x/\n"})}, c.word, "127.0.0.1")
		d.fails([]string{"build", url + "/" + c.path}, c.word, "127.0.0.1")
	}
	if left := d.leftovers(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestWhatDoesNotEndEndsWithTheDisk(t *testing.T) {
	t.Parallel()
	d := smallDisk(t, newDen(t), 24)
	url := liar(t)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	w := tarWriter{tar.NewWriter(z)}
	w.add(tar.Header{Name: "zeroes", Typeflag: tar.TypeReg, Mode: 0o644}, make([]byte, 64<<20))
	_, _ = w.Close(), z.Close() // a buffer takes everything
	ctx := func(dockerfile string) []string {
		return []string{"build", d.dir(files{"Dockerfile": dockerfile, "bomb.tar.gz": bomb.String()})}
	}
	for what, args := range map[string][]string{
		"download": ctx("FROM scratch\nADD " + url + "/endless /x\n"),
		"context":  {"build", url + "/endless"},
		"archive":  ctx("FROM scratch\nADD bomb.tar.gz /x\n"),
		"mount":    ctx("FROM @small\nRUN --mount=type=cache,target=/c cat /dev/zero > /c/x && exit 0 || { rm /c/x; echo no space left; exit 1; }\n"),
		"standard": {"build", "-"},
	} {
		var r result
		if what == "standard" {
			r = d.try(&bomb, args...)
		} else {
			r = d.try(nil, args...)
		}
		if text := strings.ToLower(r.err); r.code == 0 || !strings.Contains(text, "no space left") {
			t.Errorf("%s: exit %d, the error does not say that there is no space left:\n%s", what, r.code, tail(r.err))
		}
		if left, _ := filepath.Glob(filepath.Join(d.home, "disk/store/tmp", "*")); len(left) > 0 {
			t.Errorf("%s: left over: %q", what, left)
		}
	}
	if out := d.run("build", "-q", d.dir(files{"Dockerfile": "FROM @small\nRUN echo fits > /fits\n"})); !strings.HasPrefix(out, "sha256:") {
		t.Errorf("the build afterwards: %q", out)
	}
	d.run("store", "verify")
}

func TestOutputsThatDoNotFitLeaveNoFile(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	smallDisk(t, d, 1)
	disk := filepath.Join(d.home, "disk")
	ctx := d.dir(files{"Dockerfile": "FROM scratch\nCOPY big /\n", "big": strings.Repeat("0123456789abcdef", 1<<17)})
	out := filepath.Join(disk, "out")
	for _, attrs := range []string{"type=oci,compression=uncompressed,dest=", "type=docker,compression=uncompressed,dest=", "type=tar,dest="} {
		d.fails([]string{"build", "-o", attrs + out, ctx}, "no space left", out)
		if list, err := os.ReadDir(disk); err != nil || len(list) > 0 {
			t.Errorf("%s: left are %v, %v", attrs, list, err)
		}
	}
	if err := os.WriteFile(filepath.Join(disk, "full"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	d.fails([]string{"build", "--iidfile", out, ctx}, "no space left", out)
	d.fails([]string{"build", "--metadata-file", out, ctx}, "no space left", out)
	if _, err := os.Stat(out); err == nil {
		t.Error("a file was left half written")
	}
}

func TestSecretsAreInNoCommandLineOrAnswer(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		d = d.with("TOKEN=s3cr3t-of-the-environment")
		mark := fmt.Sprintf("%d.%d", 2000+pushed.Add(1), os.Getpid())
		ctx := d.dir(files{"file": "s3cr3t-of-the-file", ".dockerignore": "file\n", "Dockerfile": "FROM @small\n" +
			"RUN --mount=type=secret,id=f --mount=type=secret,id=e,env=E --mount=type=cache,target=/c touch /c/here; until [ -e /c/go ]; do sleep 0.1; done; : " + mark + "\n" +
			"RUN test ! -e /run/secrets && test ! -e /run/buildkit && ! env | grep s3cr3t\n"})
		name := newName(t)
		cmd := d.command(t.Context(), "build", "--progress=rawjson", "--push", "-t", name, "--secret", "id=f,src="+filepath.Join(ctx, "file"), "--secret", "id=e,env=TOKEN", ctx)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		d.inCacheMount("here")
		for _, secret := range []string{"s3cr3t-of-the-environment", "s3cr3t-of-the-file"} {
			if at := processes(t, secret); len(at) > 0 {
				t.Errorf("command lines hold %s: %q", secret, at)
			}
		}
		d.run("build", d.dir(files{"Dockerfile": "FROM @small\nRUN --mount=type=cache,target=/c touch /c/go\n"}))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, tail(said.String()))
		}
		if strings.Contains(said.String(), "s3cr3t-of") {
			t.Error("den says the secret")
		}
		if img := fetchImage(t, name); strings.Contains(fmt.Sprint(img.config, img.manifest, img.tree), "s3cr3t-of") {
			t.Error("the image says the secret")
		}
	})
}

func TestAgentIsGoneAfterItsStep(t *testing.T) {
	t.Parallel()
	need(t, "ssh-keygen")
	everyRung(t, func(t *testing.T, d *den) {
		key := filepath.Join(d.home, "key")
		if b, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, b)
		}
		d.own(key)
		got := d.tree("--ssh", "default="+key, d.dir(files{"Dockerfile": `FROM @small
RUN --mount=type=ssh toolbox agent $SSH_AUTH_SOCK > /here; ln -s $SSH_AUTH_SOCK /sock; (while :; do sleep 1; done) &
RUN echo "${SSH_AUTH_SOCK-unset}" > /env; toolbox agent /sock > /agent 2>&1 || echo gone > /gone; ps | grep -c 'while' > /left; true
`}))
		got.holds(t, "env", "unset\n")
		got.holds(t, "gone", "gone\n")
		got.lacks(t, "run/buildkit")
	})
}

func TestForkBombEndsWithItsContainer(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		mark := strconv.Itoa(3000+int(pushed.Add(1))) + "." + strconv.Itoa(os.Getpid())
		r := d.try(nil, "run", "--rm", "--pids-limit=64", "small", "sh", "-c", "i=0; while [ $i -lt 200 ]; do (trap '' TERM INT HUP; setsid sleep "+mark+") & i=$((i+1)); done; echo survived")
		if n := len(processes(t, "sleep\x00"+mark)); n > 0 {
			t.Errorf("%d processes outlive the container", n)
		}
		// Of a sentry its own, which end a moment after den has seen its exit.
		d.eventually("the container's processes end", func() bool { return len(d.sandboxed("sleep\x00"+mark)) == 0 })
		// Where den may make no cgroup it says so, and the limit is none.
		if !strings.Contains(r.err, "Resource temporarily unavailable") && !strings.Contains(r.err, "not in force") {
			t.Errorf("200 processes fit in 64: exit %d\n%s", r.code, tail(r.out+r.err))
		}
		// A step has no limit of its own; its processes end with it all the same.
		ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN i=0; while [ $i -lt 200 ]; do (trap '' TERM INT HUP; setsid sleep " + mark + ") & i=$((i+1)); done; echo started\n"})
		start := time.Now()
		d.run("build", ctx)
		if n := len(processes(t, "sleep\x00"+mark)); n > 0 || time.Since(start) > time.Minute {
			t.Errorf("%d processes outlive the step, which took %v", n, time.Since(start))
		}
	})
}

func TestDirectoryOfManyEntries(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	const many = 20_000
	f := files{"Dockerfile": "FROM @small\nCOPY many /many\nRUN ls /many | wc -l > /count; rm -rf /many; mkdir /many; touch /many/one\nCOPY --link many/f1* /some/\n"}
	for i := range many {
		f[fmt.Sprintf("many/f%d", i)] = ""
	}
	got := d.tree(d.dir(f))
	got.holds(t, "count", strconv.Itoa(many)+"\n")
	if n := len(got.below("some")); n != 1+1+10+100+1000+10_000 {
		t.Errorf("%d entries are linked", n)
	}
	if n := len(got.below("many")); n != 2 {
		t.Errorf("%d entries are left", n)
	}
}
