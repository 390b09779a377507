package store

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/durable"
	"den/internal/oci"
)

// children are what the test binary does when it is started as a child.
var children = map[string]func(ctx context.Context, root string) error{
	"another":    another,
	"capped":     cappedProcess,
	"everything": everything,
	"hostile":    holdEverything,
	"ingest":     ingestSlowly,
	"lease":      leaseAndWait,
	"locks":      printLocks,
	"publish":    publishAndClose,
	"user":       stressUser,
	"collector":  stressCollector,
}

func TestMain(m *testing.M) {
	if name := os.Getenv("DEN_TEST_CHILD"); name != "" {
		do := children[name]
		if do == nil {
			do = extraChildren()[name]
		}
		if err := do(context.Background(), os.Getenv("DEN_TEST_ROOT")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	moreParallel()
	os.Exit(m.Run())
}

// child prepares a process that does one of children on the store in root.
func child(t testing.TB, name, root, failpoints string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "DEN_TEST_CHILD="+name, "DEN_TEST_ROOT="+root, "DEN_FAILPOINTS="+failpoints)
	cmd.Stderr = &strings.Builder{}
	return cmd
}

// moreParallel has more tests at once than there are processors, unless -parallel
// says how many: those that stop processes mostly wait.
func moreParallel() {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set("8") // the testing package takes any number
	}
}

func stderr(cmd *exec.Cmd) string { return cmd.Stderr.(*strings.Builder).String() }

// everything passes every failpoint of the store, a reboot included.
func everything(ctx context.Context, root string) error {
	engine := os.Getenv("DEN_TEST_ENGINE")
	if engine == "" {
		engine = filepath.Join(filepath.Dir(root), "engine")
	}
	o := Options{EngineDir: engine, Durability: durable.Epoch, MaxBytes: 1 << 40, pulse: hasty}
	s, err := Open(ctx, root, o)
	if err != nil {
		return err
	}
	if err := publishLoose(ctx, s); err != nil {
		return err
	}
	if err := s.release(); err != nil { // as if it had been killed
		return err
	}
	boots, err := readNames(s.path("sync"))
	if err != nil {
		return err
	}
	for _, b := range boots {
		if err := os.Rename(s.path("sync", b), s.path("sync", "00000000-dead-"+b[:8])); err != nil {
			return err
		}
	}
	if err := os.WriteFile(s.path(hostsFolder, "00000000-dead"), nil, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(s.path("ingest", hexSum("half")), []byte("ha"), 0o644); err != nil {
		return err
	}
	if s, err = Open(ctx, root, o); err != nil {
		return err
	}
	for _, step := range everyStep {
		if err := step(ctx, s); err != nil {
			return errors.Join(err, s.release())
		}
	}
	return errors.Join(s.log.Sync(), s.Close())
}

var everyStep = []func(context.Context, *Store) error{ingestOne, commitOne, nameOne, mountOne, containOne, collectOne, pruneOne}

// hasty is the pulse of processes that are alone on their machine.
var hasty = pulse{every: time.Second, watch: 10 * time.Millisecond}

// another does the same work beside somebody who may be stopped, without a reboot.
func another(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "another"), Durability: durable.Epoch,
		MaxBytes: 1 << 40, pulse: hasty})
	if err != nil {
		return err
	}
	s.patience = 100 * time.Millisecond
	for _, step := range append([]func(context.Context, *Store) error{publishLoose}, everyStep...) {
		if err := step(ctx, s); err != nil {
			return errors.Join(err, s.release())
		}
	}
	return s.release() // a syncer would outlive it, in what the other takes for the log of a dead kernel
}

// publishLoose leaves suspects.
func publishLoose(ctx context.Context, s *Store) error {
	b, err := s.PutBlob(ctx, strings.NewReader("loose"))
	if err != nil {
		return err
	}
	l, err := publishLayer(ctx, s, "loose")
	if err != nil {
		return errors.Join(err, b.Close())
	}
	return errors.Join(b.Close(), l.Close())
}

func publishAndClose(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "engine"), Durability: durable.Epoch})
	if err != nil {
		return err
	}
	return errors.Join(publishLoose(ctx, s), s.Close())
}

func ingestOne(ctx context.Context, s *Store) error {
	src := &source{text: strings.Repeat("blob", 1000)}
	b, err := s.Ingest(ctx, src.ingest(nil))
	if err != nil {
		return err
	}
	err = s.SetPulledRef(ctx, Ref{Name: "pulled", Record: Record{Blobs: []oci.Digest{b.Digest()}}})
	return errors.Join(err, b.Close())
}

func commitOne(ctx context.Context, s *Store) error {
	below, err := publishLayer(ctx, s, "below")
	if err != nil {
		return err
	}
	defer below.Close()
	top, err := publishLayer(ctx, s, "top", below.DiffID())
	if err != nil {
		return err
	}
	defer top.Close()
	_, err = s.PutRecord(ctx, digest.FromString("step"), Record{Layers: []oci.Digest{top.DiffID()}}, false)
	return err
}

func nameOne(ctx context.Context, s *Store) error {
	l, err := publishLayer(ctx, s, "tagged")
	if err != nil {
		return err
	}
	if err := errors.Join(s.SetRef(ctx, Ref{Name: "app", Record: Record{Layers: []oci.Digest{l.DiffID()}}}), l.Close()); err != nil {
		return err
	}
	again, err := s.Layer(ctx, l.DiffID())
	if err != nil {
		return err
	}
	return again.Close()
}

func mountOne(ctx context.Context, s *Store) error {
	mounts, err := s.CacheMounts(ctx, []CacheMountRequest{{ID: "m"}}, nil)
	if err != nil {
		return err
	}
	err = errors.Join(mounts[0].Close(), s.PutDerived("memo", []byte("memo")))
	if err != nil {
		return err
	}
	_, hold, _, err := s.Volume(ctx, "data", true)
	if err != nil {
		return err
	}
	return hold.Close()
}

// pruneOne evicts one record, and leaves those that others look for.
func pruneOne(ctx context.Context, s *Store) error {
	b, err := s.PutBlob(ctx, strings.NewReader("evicted"))
	if err != nil {
		return err
	}
	_, err = s.PutRecord(ctx, digest.FromString("evicted"), Record{Blobs: []oci.Digest{b.Digest()}}, false)
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	old := time.Now().Add(-2 * derivedTTL)
	if err := ignore(os.Chtimes(s.derivedPath("memo"), old, old), fs.ErrNotExist); err != nil {
		return err // absent if somebody else has just forgotten it
	}
	_, err = s.Prune(ctx, PruneOptions{All: true, Filters: map[string][]string{"id": {string(digest.FromString("evicted"))}}})
	if err != nil {
		return err
	}
	if err := s.SetRef(ctx, Ref{Name: "gone"}); err != nil {
		return err
	}
	return s.DeleteRef(ctx, "gone")
}

func containOne(ctx context.Context, s *Store) error {
	l, err := publishLayer(ctx, s, "contained")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := s.NewContainer(ctx, testCID)
	if errdefs.IsAlreadyExists(err) {
		c, err = s.OpenContainer(testCID) // of a dead process
	}
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.SetRoots(Record{Layers: []oci.Digest{l.DiffID()}})
	if err == nil {
		err = durable.WriteFile(filepath.Join(c.Path(), "state.json"), []byte("{}"), 0o644)
	}
	return errors.Join(err, c.Remove())
}

func collectOne(ctx context.Context, s *Store) error {
	l, err := publishLayer(ctx, s, "garbage")
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	_, err = s.Collect(ctx)
	return err
}

// failpoints finds every point in the store and below it.
func failpoints(t *testing.T) []string {
	t.Helper()
	point := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	var points []string
	for _, pattern := range []string{"*.go", "../durable/*.go"} {
		files, err := filepath.Glob(pattern)
		must(t, err)
		for _, file := range files {
			src, err := os.ReadFile(file)
			must(t, err)
			found := point.FindAllStringSubmatch(string(src), -1)
			if n := strings.Count(string(src), "failpoint.Hit("); n != len(found) && !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s has %d points, but %d with a name in quotes: the others are not tested", file, n, len(found))
			}
			for _, m := range found {
				if !strings.HasSuffix(file, "_test.go") {
					points = append(points, m[1])
				}
			}
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// A process is killed at every point of the protocol. The store must be sound,
// and the next process must finish the job.
func TestKilledAnywhereTheStoreIsSound(t *testing.T) {
	t.Parallel()
	for _, point := range failpoints(t) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			root := filepath.Join(t.TempDir(), "store")
			cmd := child(t, "everything", root, point+"=kill")
			err := cmd.Run()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("got %v, want death by SIGKILL: %s", err, stderr(cmd))
			}
			mustBeSoundAndFinish(t, root)
		})
	}
}

// The same with a failing system call instead: an error, and no more.
func TestFailedAnywhereTheStoreIsSound(t *testing.T) {
	t.Parallel()
	type failure struct{ point, action string }
	var failures []failure
	for i, point := range failpoints(t) {
		actions := []string{"enospc", "eio", "eintr"}
		if !stressBuild {
			actions = actions[i%3 : i%3+1]
		}
		for _, action := range actions {
			failures = append(failures, failure{point, action})
		}
	}
	for _, f := range failures {
		point, action := f.point, f.action
		t.Run(point+"="+action, func(t *testing.T) {
			t.Parallel()
			root := filepath.Join(t.TempDir(), "store")
			cmd := child(t, "everything", root, point+"="+action)
			err := cmd.Run()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || !exit.Exited() || !strings.Contains(stderr(cmd), "failpoint "+point) {
				t.Fatalf("got %v, want an error: %s", err, stderr(cmd))
			}
			for _, left := range mustBeSoundAndFinish(t, root) {
				if strings.HasPrefix(left, "tmp/") {
					t.Errorf("left over: %s", left)
				}
			}
		})
	}
}

// A process is stopped at every point, and the next one does its work all the
// same; then the stopped one goes on and finishes too. Where the others have to
// wait for it, they go on when it is killed.
func TestStoppedAnywhereTheOthersGoOn(t *testing.T) {
	t.Parallel()
	for _, point := range failpoints(t) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			root := filepath.Join(t.TempDir(), "store")
			stopped := child(t, "everything", root, point+"=stop")
			must(t, stopped.Start())
			mustStop(t, stopped)
			next := child(t, "another", root, "")
			must(t, next.Start())
			if mayHoldUpOthers(point) {
				must(t, stopped.Process.Kill())
				_ = stopped.Wait()
			}
			if err := next.Wait(); err != nil {
				t.Errorf("the next process: %v: %s", err, stderr(next))
			}
			if !mayHoldUpOthers(point) {
				if err := goOn(stopped); err != nil {
					t.Errorf("the stopped process: %v: %s", err, stderr(stopped))
				}
			}
			mustBeSound(t, openStore(t, root, t.TempDir()))
		})
	}
}

// mayHoldUpOthers are the points where others wait for as long as it takes, and
// must: before recovery, which throws suspects away, is over nobody may use the
// store, and Sync is one at a time.
func mayHoldUpOthers(point string) bool {
	return strings.HasPrefix(point, "store.recover.") || strings.HasPrefix(point, "durable.sync.") || point == "durable.acquit.remove" || point == "store.trash.rename"
}

// goOn waits for a process that stops itself whenever it comes to its point.
func goOn(cmd *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-t.C:
			_ = cmd.Process.Signal(syscall.SIGCONT) // it may have ended
		}
	}
}

// mustStop waits until the process has stopped itself.
func mustStop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("did not stop: %v %v: %s", status, err, stderr(cmd))
	}
}

// mustBeSoundAndFinish returns what was left over before the next process came.
func mustBeSoundAndFinish(t *testing.T, root string) []string {
	t.Helper()
	if !exists(filepath.Join(root, FormatFile)) {
		must(t, child(t, "everything", root, "").Run())
		return nil
	}
	s := openStore(t, root, t.TempDir())
	before := mustBeSound(t, s)
	cmd := child(t, "everything", root, "")
	if err := cmd.Run(); err != nil {
		// Its container may be there still, dead.
		t.Fatalf("the next process: %v: %s", err, stderr(cmd))
	}
	mustBeSound(t, s)
	collect(t, s)
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over after all: %v", r.Leftovers)
	}
	for _, d := range []oci.Digest{"layer top", "layer below", "layer tagged"} {
		if !hasLayer(t, s, digest.FromString(string(d))) {
			t.Errorf("%s is gone", d)
		}
	}
	return before.Leftovers
}

// slowText is fetched by ingestSlowly in two halves.
var slowText = strings.Repeat("slow", 100_000)

// ingestSlowly ingests slowText. Each fetch is logged in root/../fetches; the
// first half done, it says so on stdout and goes on at the end of stdin.
func ingestSlowly(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "engine"), Durability: durable.None})
	if err != nil {
		return err
	}
	in := (&source{text: slowText}).ingest(nil)
	in.Fetch = func(_ context.Context, offset int64) (io.ReadCloser, error) {
		log, err := os.OpenFile(filepath.Join(filepath.Dir(root), "fetches"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintln(log, offset)
		half := max(offset, int64(len(slowText)/2))
		return io.NopCloser(io.MultiReader(
			strings.NewReader(slowText[offset:half]),
			&gate{},
			strings.NewReader(slowText[half:]),
		)), errors.Join(err, log.Close())
	}
	b, err := s.Ingest(ctx, in)
	if err != nil {
		return err
	}
	return errors.Join(b.Close(), s.Close())
}

// A gate reads as empty, after it announced itself and stdin has ended.
type gate struct{}

func (*gate) Read([]byte) (int, error) {
	fmt.Println("half")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

func fetches(t *testing.T, root string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(filepath.Dir(root), "fetches"))
	must(t, err)
	return strings.Fields(string(data))
}

func TestManyProcessesFetchOnce(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	var cmds []*exec.Cmd
	for range 6 {
		cmd := child(t, "ingest", root, "")
		must(t, cmd.Start())
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, stderr(cmd))
		}
	}
	if got := fetches(t, root); len(got) != 1 {
		t.Errorf("fetched %d times, from %v", len(got), got)
	}
	mustBeSound(t, openStore(t, root, t.TempDir()))
}

// startHalf starts a child that has fetched half of the blob and waits.
func startHalf(t *testing.T, root string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := child(t, "ingest", root, "")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("child: %v: %s", err, stderr(cmd))
	}
	return cmd, stdin
}

func TestNextProcessGoesOnWhereAKilledOneStopped(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	first, _ := startHalf(t, root)
	s := openStore(t, root, t.TempDir())
	src := &source{text: slowText}
	done := make(chan error)
	go func() {
		b, err := s.Ingest(t.Context(), src.ingest(nil))
		if err == nil {
			err = b.Close()
		}
		done <- err
	}()
	must(t, first.Process.Kill())
	_ = first.Wait()
	must(t, <-done)
	if want := int64(len(slowText) / 2); len(src.offsets) != 1 || src.offsets[0] != want {
		t.Errorf("fetched from %v, want %d", src.offsets, want)
	}
	mustBeSound(t, s)
}

func TestStoppedProcessStopsNobodyElse(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	first, stdin := startHalf(t, root)
	must(t, first.Process.Signal(syscall.SIGSTOP))
	s := openStore(t, root, t.TempDir())
	s.patience = 50 * time.Millisecond
	b, err := s.Ingest(t.Context(), (&source{text: slowText}).ingest(nil))
	must(t, err)
	must(t, b.Close())
	must(t, first.Process.Signal(syscall.SIGCONT))
	must(t, stdin.Close())
	if err := first.Wait(); err != nil {
		t.Errorf("the stopped one: %v: %s", err, stderr(first))
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

// leaseAndWait holds a layer until stdin ends.
func leaseAndWait(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "engine"), Durability: durable.None})
	if err != nil {
		return err
	}
	l, err := publishLayer(ctx, s, "leased")
	if err != nil {
		return err
	}
	_, err = (&gate{}).Read(nil)
	return errors.Join(ignore(err, io.EOF), l.Close(), s.Close())
}

func TestLeaseEndsWithItsProcess(t *testing.T) {
	for name, flags := range map[string]uintptr{
		"same namespaces":  0,
		"other namespaces": syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
	} {
		t.Run(name, func(t *testing.T) {
			if flags != 0 && os.Geteuid() != 0 {
				t.Skip("needs root: to make namespaces")
			}
			root := filepath.Join(t.TempDir(), "store")
			cmd := child(t, "lease", root, "")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
			_, err := cmd.StdinPipe()
			must(t, err)
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
				t.Skip("needs namespaces: ", err)
			} else {
				must(t, err)
			}
			if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
				t.Fatalf("child: %v: %s", err, stderr(cmd))
			}
			s := openStore(t, root, t.TempDir())
			leased := digest.FromString("layer leased")
			collect(t, s)
			if !hasLayer(t, s, leased) {
				t.Error("a leased layer is gone")
			}
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
			collect(t, s)
			if hasLayer(t, s, leased) {
				t.Error("a dead process's lease holds")
			}
		})
	}
}
