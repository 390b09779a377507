package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// trusted is a Dockerfile whose steps are worth sharing; the first is seen to
// run again, because it draws a number.
const trusted = `FROM @small
RUN head -c 8000000 /dev/urandom > /noise; sha256sum /noise > /sum
RUN mkdir /made && cat /sum > /made/sum
`

// readOnly is where dir is seen read-only, as a job sees it that is not trusted.
func (d *den) readOnly(dir string) string {
	d.t.Helper()
	needRoot(d.t)
	at := filepath.Join(d.home, "read-only")
	if err := syscall.Mkdir(at, 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := syscall.Mount(dir, at, "", syscall.MS_BIND, ""); err != nil {
		d.t.Skipf("needs to mount: %v", err)
	}
	d.t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil {
			d.t.Error(err)
		}
	})
	if err := syscall.Mount("", at, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		d.t.Fatal(err)
	}
	return at
}

// untrusted is the n-th job: a store and an engine of its own above base.
func (d *den) untrusted(base string, n int) *den {
	home := filepath.Join(d.home, fmt.Sprintf("job-%d", n))
	return d.with("DEN_STORE="+filepath.Join(home, "store"), "DEN_DATA_ROOT="+filepath.Join(home, "data"), "DEN_BASE_STORE="+base)
}

// diskUse is what the files below dir take. What goes meanwhile takes nothing:
// a den that has ended may leave a process that syncs its store.
func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return bytes
}

// What a trusted process built, ten jobs with a store of their own use in
// place, on both rungs.
func TestUntrustedJobsUseATrustedStoreInPlace(t *testing.T) {
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"Dockerfile": trusted})
		d.run("build", "-q", "-t", "trusted", ctx)
		want := d.run("run", "--rm", "--network=none", "trusted", "cat", "/made/sum")
		base := d.readOnly(d.store())
		more := d.dir(files{"Dockerfile": trusted + "RUN cp /made/sum /own && echo $((1+1)) >> /own\n"})
		var wg sync.WaitGroup
		for n := range 10 {
			wg.Go(func() {
				j := d.untrusted(base, n)
				r := j.try(nil, "build", "--progress=plain", "-t", "own", more)
				if r.code != 0 {
					t.Errorf("job %d: %s", n, tail(r.err))
					return
				}
				if got := strings.Count(r.err, "CACHED"); got != 3 {
					t.Errorf("job %d: %d steps are cached\n%s", n, got, tail(r.err))
				}
				if got := j.try(nil, "run", "--rm", "--network=none", "own", "cat", "/own"); got.code != 0 || got.out != want+"2\n" {
					t.Errorf("job %d: exit %d, %q, want %q and 2\n%s", n, got.code, got.out, want, got.err)
				}
				upper := filepath.Join(d.home, fmt.Sprintf("job-%d", n), "store")
				if used := diskUse(t, upper); used > 2_000_000 {
					t.Errorf("job %d: its own store takes %d bytes: something was copied", n, used)
				}
			})
		}
		wg.Wait()
		d.run("store", "verify", "--deep")
		// Above, everything may go; the base stays.
		j := d.untrusted(base, 0)
		j.run("prune", "-a", "-f")
		j.run("store", "gc", "--all")
		if got := d.run("run", "--rm", "--network=none", "trusted", "cat", "/made/sum"); got != want {
			t.Errorf("the base's image now holds %q, want %q", got, want)
		}
	})
}

// What a job built above a base, a trusted process takes over: from the scope
// that it trusts and from no other, and nothing that is not what it claims.
func TestPromotionTakesWhatItCanVerify(t *testing.T) {
	everyRung(t, func(t *testing.T, d *den) {
		step := func(text string) string {
			return d.dir(files{"Dockerfile": trusted + "RUN head -c 100 /dev/urandom | sha256sum > /" + text + "\n"})
		}
		d.run("build", "-q", d.dir(files{"Dockerfile": trusted}))
		base := d.readOnly(d.store())
		job := d.untrusted(base, 0)
		job.run("build", "-q", "--cache-scope=main,default", "-t", "good", step("good"))
		job.run("build", "-q", "--cache-scope=pr-1,default", "-t", "evil", step("evil"))
		want := job.run("run", "--rm", "--network=none", "good", "cat", "/good")
		upper := filepath.Join(d.home, "job-0", "store")
		out := d.run("store", "promote", "--from", upper, "--scope", "main")
		if !strings.Contains(out, " 0 were refused") || strings.HasPrefix(out, "0 records") {
			t.Errorf("promote: %s", out)
		}
		d.run("store", "verify", "--deep")
		other := d.untrusted(base, 1)
		r := other.try(nil, "build", "--progress=plain", "--cache-scope=main,default", "-t", "good", step("good"))
		if r.code != 0 || strings.Count(r.err, "CACHED") != 4 {
			t.Errorf("what was promoted is built again: exit %d\n%s", r.code, tail(r.err))
		}
		if got := other.run("run", "--rm", "--network=none", "good", "cat", "/good"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		r = other.try(nil, "build", "--progress=plain", "--cache-scope=pr-1,default", step("evil"))
		if r.code != 0 || strings.Count(r.err, "CACHED") != 3 {
			t.Errorf("the record of a scope that is not trusted was taken: exit %d\n%s", r.code, tail(r.err))
		}
		// The job writes into a tree of its own, as hostile as it likes.
		poisoned := 0
		err := filepath.WalkDir(filepath.Join(upper, "layers"), func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
			case e.Name() == "evil":
				poisoned++
				err = os.WriteFile(path, []byte("poison\n"), 0o644)
			case e.Name() == "image.erofs": // a tree in one file
				b, rerr := os.ReadFile(path)
				if at := bytes.Index(b, []byte("  -\n")); rerr == nil && at > 0 {
					poisoned++
					b[at-1] ^= 1
					err = os.WriteFile(path, b, 0o644)
				}
			}
			return err
		})
		if err != nil || poisoned == 0 {
			t.Fatalf("%d files poisoned, %v", poisoned, err)
		}
		res := d.try(nil, "store", "promote", "--from", upper, "--scope", "pr-1")
		if res.code != 1 || !strings.Contains(res.out, "refused  record sha256:") {
			t.Errorf("a poisoned tree: exit %d, %s%s", res.code, res.out, res.err)
		}
		d.run("store", "verify", "--deep")
		d.fails([]string{"store", "promote", "--from", upper}, "--scope")
	})
}
