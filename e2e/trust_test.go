package e2e

import (
	"fmt"
	"io/fs"
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

// diskUse is what the files below dir take.
func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && !e.IsDir() {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// What a trusted process built, ten jobs with a store of their own use in
// place, on both rungs.
func TestUntrustedJobsUseATrustedStoreInPlace(t *testing.T) {
	bothRungs(t, func(t *testing.T, d *den) {
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
				if got := strings.Count(r.err, "CACHED"); got < 2 {
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
