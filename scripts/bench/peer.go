package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// A peer does a workload's parts on a fresh file system.
type peer interface {
	name() string
	start() error // what is there before the clock starts
	stop()
	prepare(part) error // before each part, not measured either
	do(part) error
	stores() []string
	// peak is the largest resident size since the last call, in KiB.
	peak() int64
	// result is a directory with what the workload is checked by.
	result() (string, error)
}

// each runs f for every number below n, at the same time.
func each(n int, f func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// denPeer is den; it has one store, or one for each build.
type denPeer struct {
	b   *bench
	fs  string
	w   workload
	rss peak
	to  *registryServer // that it pushes to
	// around, where set, makes a command of den's arguments and store.
	around func(store string, args []string) (env, command []string)
}

func (b *bench) newDen(fs string, w workload) peer { return &denPeer{b: b, fs: fs, w: w} }

func (d *denPeer) name() string { return "den" }

func (d *denPeer) stores() []string {
	return instances(d.fs, "den", d.w)
}

// instances are the stores of a peer: one for each build, or one.
func instances(fs, name string, w workload) []string {
	n := 1
	if w.apart {
		n = w.builds
	}
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = filepath.Join(fs, fmt.Sprint(name, i))
	}
	return dirs
}

// run runs den with the store of build i.
func (d *denPeer) run(i int, args ...string) error {
	stores := d.stores()
	store := stores[i%len(stores)]
	env, command := []string{"DEN_STORE=" + store}, append([]string{d.b.den}, args...)
	if d.around != nil {
		env, command = d.around(store, args)
	}
	return d.b.group.runPeak(&d.rss, d.fs, env, command...)
}

func (d *denPeer) start() error {
	for i := range d.stores() {
		if err := d.run(i, "pull", "-q", d.b.registry+"/"+d.w.image); err != nil {
			return err
		}
	}
	return nil
}

func (d *denPeer) stop() {
	if d.to != nil {
		d.to.stop()
	}
}

func (d *denPeer) peak() int64 { return d.rss.kib.Swap(0) }

func (d *denPeer) do(p part) error {
	switch p.kind {
	case running:
		return d.run(0, "run", "--rm", d.b.registry+"/"+d.w.image, "true")
	case pull:
		return d.run(0, "pull", "-q", d.b.registry+"/"+dataImage)
	case push:
		return d.run(0, "push", "-q", d.to.address+"/"+dataImage)
	default:
		return each(d.w.builds, func(i int) error {
			return d.run(i, "build", "--progress=plain", "--target=result", "-t", fmt.Sprint("b", i), "-f", d.b.dockerfile(d.w, i), d.b.context(d.w.context))
		})
	}
}

// prepare makes the registry that is pushed to.
func (d *denPeer) prepare(p part) (err error) {
	if p.kind != push {
		return nil
	}
	if d.to, err = startRegistry(filepath.Join(d.fs, "pushed")); err != nil {
		return err
	}
	return d.run(0, "tag", d.b.registry+"/"+dataImage, d.to.address+"/"+dataImage)
}

func (d *denPeer) result() (string, error) {
	out := filepath.Join(d.fs, "out")
	for i := range d.w.builds {
		to := filepath.Join(out, fmt.Sprint(i))
		if err := d.run(i, "build", "-q", "--target=check", "-o", to, "-f", d.b.dockerfile(d.w, i), d.b.context(d.w.context)); err != nil {
			return "", err
		}
	}
	if d.to != nil {
		return out, d.b.checkPushed(d.to.address)
	}
	return out, nil
}

// overlay mounts what the floor made.
func overlay(lower, upper, work, at string) error {
	for _, d := range []string{upper, work, at} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("volatile,lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := syscall.Mount("overlay", at, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	return nil
}
