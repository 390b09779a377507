package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A workload is a context, and the parts that are measured one after another.
type workload struct {
	name    string
	context string // its directory's name
	image   string // the base that is there before the clock starts
	builds  int    // at the same time
	apart   bool   // each build has a store, or a daemon, of its own
	pushes  bool
	parts   []part
	floor   func(*floorPeer, part) error
	// noBuildKit marks what BuildKit has no equal for.
	noBuildKit bool
	// checkRun is run over the result; checkFiles of its root are then given to check, in a directory for each build.
	checkRun   string
	checkFiles []string
	check      func(b *bench, dir string) error
}

// A part is one measured command, after change.
type part struct {
	name   string
	kind   kind
	growth bool // the stores' growth is taken
	change func(dir string) error
}

type kind int

const (
	building kind = iota
	running
	pull
	push
)

const (
	smallFiles = 20_000
	runSteps   = 20
	sharedCopy = 5 // steps that the builds of W9 share
	dataImage  = "data"
)

func workloads() []workload {
	cold, warm := part{name: "cold", growth: true}, part{name: "unchanged"}
	w9 := workload{
		name: "W9", context: "W9", image: "debian", builds: 4, parts: []part{cold}, floor: floorFour,
		checkRun: countShared, checkFiles: []string{"u1", "u2", "u3", "counts"}, check: checkFour,
	}
	w9x4 := w9
	w9x4.name, w9x4.apart = "W9x4", true
	return []workload{
		{
			name: "W1", context: "W1", image: "debian", builds: 1, parts: []part{cold, warm}, floor: floorSteps,
			checkRun: "cat $(seq -f /f%g 1 20) > /all", checkFiles: []string{"all"}, check: checkSteps,
		},
		{
			name: "W2", context: "W2", image: "debian", builds: 1, floor: floorSmall,
			parts:      []part{cold, warm, {name: "one changed", change: touch("src/last.txt")}},
			checkFiles: []string{"count", "app"}, check: checkSmall,
		},
		{
			name: "W3", context: "W3", image: "debian", builds: 1, parts: []part{cold}, floor: floorBig,
			checkFiles: []string{"sum"}, check: checkBig,
		},
		{
			name: "W4", context: "W4", image: "golang", builds: 1, floor: floorGo,
			parts:      []part{cold, warm, {name: "one changed", change: goVersion}},
			checkFiles: []string{"app"}, check: checkGo,
		},
		{
			name: "W5", context: "W5", image: "debian", builds: 1, parts: []part{cold}, floor: floorApt,
			checkRun: "git --version > /versions && python3 --version >> /versions", checkFiles: []string{"versions"}, check: checkApt,
		},
		w9, w9x4,
		{
			name: "W11", context: "W11", image: "debian", builds: 1, pushes: true, floor: floorPull,
			parts:    []part{{name: "pull", kind: pull, growth: true}, {name: "push", kind: push}},
			checkRun: sumData, checkFiles: []string{"datasum"}, check: checkData,
		},
		{name: "run", context: "W1", image: "debian", builds: 1, parts: []part{{name: "true", kind: running}}, floor: floorRun, noBuildKit: true},
	}
}

func floorSteps(f *floorPeer, p part) error {
	if p.name == "unchanged" {
		return f.run("sha256sum", f.b.dockerfile(f.w, 0))
	}
	for i := range runSteps {
		if err := f.step(fmt.Sprintf("echo %d > /f%d", i+1, i+1)); err != nil {
			return err
		}
	}
	return nil
}

func checkSteps(_ *bench, dir string) error {
	var want strings.Builder
	for i := range runSteps {
		fmt.Fprintln(&want, i+1)
	}
	return content(filepath.Join(dir, "0/all"), want.String())
}

func floorSmall(f *floorPeer, p part) error {
	src := filepath.Join(f.b.context("W2"), "src")
	if p.name != "cold" {
		if err := f.run("find", src, "-printf", "%s %T@ %i\n"); err != nil || p.name == "unchanged" {
			return err
		}
		if err := f.copy(filepath.Join(src, "last.txt"), "app/last.txt"); err != nil {
			return err
		}
	} else if err := f.copy(src, "app"); err != nil {
		return err
	}
	return f.step("find /app -type f | wc -l > /count")
}

func checkSmall(b *bench, dir string) error {
	out, err := exec.Command("diff", "-r", filepath.Join(b.context("W2"), "src"), filepath.Join(dir, "0/app")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copied files differ: %w\n%.2000s", err, out)
	}
	return content(filepath.Join(dir, "0/count"), fmt.Sprintln(smallFiles))
}

func floorBig(f *floorPeer, _ part) error {
	if err := f.copy(filepath.Join(f.b.context("W3"), "big"), "big"); err != nil {
		return err
	}
	return f.step("sha256sum /big > /sum")
}

func checkBig(b *bench, dir string) error {
	out, err := exec.Command("sha256sum", filepath.Join(b.context("W3"), "big")).Output()
	if err != nil {
		return err
	}
	sum, _, _ := strings.Cut(string(out), " ")
	return content(filepath.Join(dir, "0/sum"), sum+"  /big\n")
}

func floorGo(f *floorPeer, p part) error {
	if p.name == "unchanged" {
		return f.run("sha256sum", f.b.dockerfile(f.w, 0))
	}
	up := filepath.Join(f.fs, "up0")
	if len(f.uppers) == 0 {
		if _, err := f.layer(); err != nil {
			return err
		}
	}
	return f.b.group.run(f.b.context("W4"), append(goEnv, "GOCACHE="+filepath.Join(f.fs, "gocache")),
		filepath.Join(f.b.golang, "bin/go"), "build", "-trimpath", "-o", filepath.Join(up, "app"), ".")
}

// goEnv keeps go from the network and from the settings of whoever runs this.
var goEnv = []string{"CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOPROXY=off", "GOFLAGS=-buildvcs=false", "GOWORK=off", "GOENV=off"}

func checkGo(b *bench, dir string) error {
	version, err := os.ReadFile(filepath.Join(b.context("W4"), "version.go"))
	if err != nil {
		return err
	}
	out, err := exec.Command(filepath.Join(dir, "0/app")).Output()
	if err != nil {
		return fmt.Errorf("the built program: %w", err)
	}
	if got := strings.TrimSpace(string(out)); got == "" || !bytes.Contains(version, []byte(got)) {
		return fmt.Errorf("the built program says %q, its source %q", got, version)
	}
	return nil
}

func floorApt(f *floorPeer, _ part) error { return f.step(f.b.aptInstall()) }

func checkApt(_ *bench, dir string) error {
	got, err := os.ReadFile(filepath.Join(dir, "0/versions"))
	if err == nil && (!bytes.Contains(got, []byte("git version")) || !bytes.Contains(got, []byte("Python 3"))) {
		err = fmt.Errorf("installed: %q", got)
	}
	return err
}

// countShared writes how many files each of the shared steps copied, and how many there are to copy.
const countShared = "for d in /usr/share /s1 /s2 /s3 /s4 /s5; do find $d | wc -l; done > /counts"

// floorFour does the shared steps once, and the steps of all builds.
func floorFour(f *floorPeer, _ part) error {
	for i := range sharedCopy {
		if err := f.step(fmt.Sprintf("cp -a /usr/share /s%d", i+1)); err != nil {
			return err
		}
	}
	for n := range f.w.builds {
		for i := range 3 {
			if err := f.step(fmt.Sprintf("echo %d-%d > /u%d", n, i+1, i+1)); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkFour(_ *bench, dir string) error {
	results, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, r := range results {
		n := r.Name()
		if len(results) == 1 {
			n = "3" // the floor's four are one
		}
		for i := range 3 {
			if err := content(filepath.Join(dir, r.Name(), fmt.Sprint("u", i+1)), fmt.Sprintf("%s-%d\n", n, i+1)); err != nil {
				return err
			}
		}
		counts, err := os.ReadFile(filepath.Join(dir, r.Name(), "counts"))
		if err != nil {
			return err
		}
		list := strings.Fields(string(counts))
		for _, c := range list {
			if len(list) != sharedCopy+1 || c != list[0] || c == "0" {
				return fmt.Errorf("files in /usr/share and its copies: %q", list)
			}
		}
	}
	return nil
}

// floorPull downloads and unpacks two layers at a time.
func floorPull(f *floorPeer, p part) error {
	if p.kind == push {
		return errNone
	}
	layers, err := layersOf(f.b.registry, dataImage)
	if err != nil {
		return err
	}
	layers = layers[1:] // without the base's
	up, err := f.layer()
	if err != nil {
		return err
	}
	script := `up=$1; url=$2; shift 2; printf '%s\n' "$@" | xargs -P2 -I@ sh -c 'curl -sf '$url'@ | tee '$up.@.gz' | sha256sum > '$up.@.sum'; tar -xzf '$up.@.gz' -C '$up`
	args := append([]string{"sh", "-c", script, "sh", up, "http://" + f.b.registry + "/v2/" + dataImage + "/blobs/"}, layers...)
	return f.run(args...)
}

// errNone says that there is no floor of a part.
var errNone = errors.New("no floor")

// sumData is one digest of all files of the data image.
const sumData = "cd /m && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum > /datasum"

func checkData(b *bench, dir string) error {
	out, err := exec.Command("sh", "-c", "cd '"+b.context("W11")+"' && cd all && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum").Output()
	if err != nil {
		return err
	}
	return content(filepath.Join(dir, "0/datasum"), string(out))
}

func floorRun(f *floorPeer, _ part) error { return f.step("true") }

// content compares a file with what it should be.
func content(file, want string) error {
	got, err := os.ReadFile(file)
	if err == nil && string(got) != want {
		err = fmt.Errorf("%s is %.200q, want %.200q", file, got, want)
	}
	return err
}

func touch(name string) func(string) error {
	return func(dir string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(time.Now().String()), 0o644)
	}
}

func goVersion(dir string) error {
	return os.WriteFile(filepath.Join(dir, "version.go"), fmt.Appendf(nil, "package main\n\nconst version = \"%d\"\n", time.Now().UnixNano()), 0o644)
}
