package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	stdio "io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sandbox/sentry"
	"den/internal/store/backing"
)

// The scripts run den as it is installed: this test's binary under den's name,
// which a detached den and a user namespace start again under that name.
func TestMain(m *testing.M) {
	if sentry.Main() {
		return
	}
	testscript.Main(m, map[string]func(){
		"den": main, "executor": calledAs("/kaniko/executor"), "warmer": calledAs("/kaniko/warmer"), "buildah": calledAs("buildah"),
	})
}

// calledAs is den under another name: testscript tells it the last part only.
func calledAs(name string) func() {
	return func() {
		os.Args[0] = name
		main()
	}
}

func TestScripts(t *testing.T) {
	p := scriptParams(t)
	p.Dir = "testdata/script"
	testscript.Run(t, p)
}

// What needs no sandbox works alike where layers are images.
func TestScriptsInImageForm(t *testing.T) {
	p := scriptParams(t)
	for _, name := range []string{"archive", "basestore", "build", "images", "promote", "registry"} {
		p.Files = append(p.Files, filepath.Join("testdata/script", name+".txtar"))
	}
	setup := p.Setup
	p.Setup = func(env *testscript.Env) error {
		env.Setenv("DEN_STORE_FORM", "image")
		return setup(env)
	}
	testscript.Run(t, p)
}

func scriptParams(t *testing.T) testscript.Params {
	boxes := &boxBuilder{dir: t.TempDir()}
	return testscript.Params{
		RequireUniqueNames:  true,
		RequireExplicitExec: false,
		Setup:               setupScript,
		Condition:           scriptCondition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"box": boxes.command, "code": codeCommand, "mktar": mktarCommand, "until": untilCommand, "mkgit": mkgitCommand,
		},
	}
}

// setupScript gives a script a home, a store and a registry of its own.
func setupScript(env *testscript.Env) error {
	for _, dir := range []string{"home", "docker", "tmp"} {
		if err := os.MkdirAll(filepath.Join(env.WorkDir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(env.WorkDir, "daemon.json"), []byte("{}"), 0o644); err != nil {
		return err
	}
	quiet := registry.Logger(log.New(stdio.Discard, "", 0))
	open := httptest.NewServer(registry.New(quiet))
	env.Defer(open.Close)
	locked := httptest.NewServer(basicAuth(registry.New(quiet)))
	env.Defer(locked.Close)
	if err := serveFiles(env); err != nil {
		return err
	}
	for k, v := range map[string]string{
		"HOME": filepath.Join(env.WorkDir, "home"), "DOCKER_CONFIG": filepath.Join(env.WorkDir, "docker"),
		"DEN_STORE": filepath.Join(env.WorkDir, "store"), "DEN_DATA_ROOT": filepath.Join(env.WorkDir, "engine"),
		"DEN_CONFIG_FILE": filepath.Join(env.WorkDir, "daemon.json"), "TMPDIR": filepath.Join(env.WorkDir, "tmp"),
		"REGISTRY": strings.TrimPrefix(open.URL, "http://"), "LOCKED_REGISTRY": strings.TrimPrefix(locked.URL, "http://"),
		"DEN_ISOLATION": os.Getenv("DEN_ISOLATION"), "NORUNG": rung(),
	} {
		env.Setenv(k, v)
	}
	return nil
}

// basicAuth lets in den with the password "sesame".
func basicAuth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "den" || password != "sesame" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// scriptCondition knows [rung]: containers can run here; $NORUNG says why not; [loop]: loop
// devices can be used.
func scriptCondition(cond string) (bool, error) {
	switch cond {
	case "rung":
		return rung() == "", nil
	case "root":
		return os.Geteuid() == 0, nil
	case "loop":
		return loop(), nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// rung says why nothing can be run here, or nothing.
var rung = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "den-rung-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	if _, err := sandbox.Choose(probe.Gather(context.Background(), dir), os.Getenv("DEN_ISOLATION")); err != nil {
		return err.Error()
	}
	return ""
})

var loop = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "den-loop-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	_, err = backing.Create(dir, 128<<20)
	return err == nil
})

// codeCommand checks an exit code: code 125 den run nowhere.
func codeCommand(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// untilCommand repeats a command until it succeeds: for what another process
// is about to do.
func untilCommand(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("until %s: %v", strings.Join(args, " "), err)
		}
	}
}

func hexName(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

// mktarCommand makes a tar of a directory: mktar OUT DIR.
func mktarCommand(ts *testscript.TestScript, _ bool, args []string) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	ts.Check(tw.AddFS(os.DirFS(ts.MkAbs(args[1]))))
	ts.Check(tw.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o644))
}

// A boxBuilder builds the program testdata/box, once.
type boxBuilder struct {
	dir  string
	once sync.Once
	err  error
}

// command makes an image of the program: box NAME [INSTRUCTION...].
func (b *boxBuilder) command(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs("box-" + hexName(args[0]))
	ts.Check(b.context(dir, args[1:]))
	ts.Check(ts.Exec("den", "build", "-q", "-t", args[0], dir))
}

// context makes a build context whose image has the program and a few files.
func (b *boxBuilder) context(dir string, instructions []string) error {
	program, err := b.build()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"Dockerfile":        "FROM scratch\nCOPY rootfs /\nENV PATH=/bin\n" + strings.Join(instructions, "\n") + "\n",
		"rootfs/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/srv/www:/bin/false\n",
		"rootfs/etc/group":  "root:x:0:\nwww:x:33:\nextra:x:44:www\n",
		"rootfs/data/seed":  "seed\n",
		"rootfs/bin/box":    string(data),
	} {
		file := filepath.Join(dir, name)
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, "/box") {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), mode)); err != nil {
			return err
		}
	}
	for _, link := range []string{"cat", "do", "echo", "env", "exit", "sh", "sleep", "trap", "true", "tty"} {
		if err := os.Symlink("box", filepath.Join(dir, "rootfs", "bin", link)); err != nil {
			return err
		}
	}
	return nil
}

func (b *boxBuilder) build() (string, error) {
	out := filepath.Join(b.dir, "box")
	b.once.Do(func() {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./testdata/box")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build the box: %w: %s", err, text)
		}
	})
	return out, b.err
}
