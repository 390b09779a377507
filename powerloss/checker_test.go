package powerloss

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/store"
)

// A finding is what is wrong after a power cut.
type finding string

// A checker is the first process after a power cut: it opens the store, which
// recovers it, and reads everything that a process can get hold of.
type checker struct {
	task
	s        *store.Store
	findings []finding
	read     int // objects that were served
}

func (c *checker) find(format string, args ...any) {
	c.findings = append(c.findings, finding(fmt.Sprintf(format, args...)))
}

// checked is what a checker found.
type checked struct {
	Findings []finding
	Read     int
	// Unmountable says that there was nothing to check.
	Unmountable bool `json:"-"`
}

func check(ctx context.Context, t task) (checked, error) {
	c := &checker{task: t}
	_, err := os.Lstat(filepath.Join(t.Root, "den-store.json"))
	if errors.Is(err, os.ErrNotExist) && len(t.Want.Objects) > 0 {
		c.find("the store is gone")
	}
	if c.s, err = openStore(ctx, t); err != nil {
		c.find("the store does not open: %v", err)
		return checked{Findings: c.findings}, nil
	}
	steps := []func(context.Context) error{c.verify, c.lost, c.blobs, c.layers, c.records, c.refs, c.mutable, c.goOn, c.verify}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return checked{}, err
		}
	}
	if err := c.s.Close(); err != nil {
		c.find("close: %v", err)
	}
	return checked{Findings: c.findings, Read: c.read}, nil
}

func (c *checker) verify(ctx context.Context) error {
	r, err := c.s.Verify(ctx, true)
	for _, p := range r.Problems {
		c.find("verify: %s: %s", p.Path, p.What)
	}
	return err
}

// lost looks for what must be there.
func (c *checker) lost(ctx context.Context) error {
	for _, rel := range c.Want.Objects {
		if _, err := os.Lstat(filepath.Join(c.Root, rel)); err != nil {
			c.find("lost: %s", rel)
		}
	}
	for rel, r := range c.Want.Refs {
		if _, err := os.Lstat(filepath.Join(c.Root, rel)); err != nil && r.Must {
			c.find("lost: %s, of version %d to %d", rel, r.Least, r.Most)
		}
	}
	return nil
}

// each calls fn with the name of each file that pattern matches, without its
// extension.
func (c *checker) each(pattern string, fn func(name string) error) error {
	paths, err := filepath.Glob(filepath.Join(c.Root, pattern))
	if err != nil {
		return err
	}
	for _, path := range paths {
		err := fn(strings.TrimSuffix(filepath.Base(path), ".json"))
		if errdefs.IsNotFound(err) {
			continue // a miss
		}
		if err != nil {
			c.find("%s: %v", path, err)
		}
		c.read++
	}
	return nil
}

func (c *checker) blobs(ctx context.Context) error {
	return c.each("blobs/sha256/*", func(name string) error {
		d := digest.NewDigestFromEncoded(digest.SHA256, name)
		b, err := c.s.Blob(ctx, d)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(b.Reader())
		if err == nil && digest.FromBytes(data) != d {
			err = fmt.Errorf("torn, of %d bytes", len(data))
		}
		return errors.Join(err, b.Close())
	})
}

// layers asks for each layer by the name that its metadata says, and for those
// that records and references name.
func (c *checker) layers(ctx context.Context) error {
	return c.each("layers/*/*/*", func(name string) error {
		metas, err := filepath.Glob(filepath.Join(c.Root, "layers/*/*", name, "meta.json"))
		if err != nil || len(metas) != 1 {
			return fmt.Errorf("has %d metadata files (%v)", len(metas), err)
		}
		data, err := os.ReadFile(metas[0])
		if err != nil {
			return err
		}
		var meta store.LayerMeta
		if err := json.Unmarshal(data, &meta); err != nil {
			return err
		}
		return c.layer(ctx, meta.DiffID)
	})
}

func (c *checker) layer(ctx context.Context, diffID digest.Digest) error {
	l, err := c.s.Layer(ctx, diffID)
	if err != nil {
		return err
	}
	m, err := markOf(l.Meta().Extra)
	if err == nil && layerID(m.Seed) != diffID {
		err = fmt.Errorf("is the layer %q", m.Seed)
	}
	for i, dir := range l.Dirs() {
		seed := m.Seed + []string{"", "-below"}[i]
		if err == nil {
			err = checkTree(dir, seed)
		}
	}
	return errors.Join(err, l.Close())
}

func (c *checker) records(ctx context.Context) error {
	return c.each("cache/*/*", func(name string) error {
		key := digest.NewDigestFromEncoded(digest.SHA256, name)
		r, err := c.s.Record(ctx, key)
		if err != nil {
			return err
		}
		m, err := markOf(r.Data)
		if err != nil || recordKey(m.Seed) != key || len(r.Layers) != 1 || r.Layers[0] != layerID(m.Seed) {
			return fmt.Errorf("holds %s %v (%v)", r.Data, r.Layers, err)
		}
		return c.layer(ctx, r.Layers[0])
	})
}

func (c *checker) refs(ctx context.Context) error {
	refs, err := c.s.Refs(ctx)
	if err != nil {
		return err
	}
	for _, r := range refs {
		c.read++
		m, err := markOf(r.Data)
		want, ok := c.Want.Refs[refRel(c.s, r.Name)]
		if err != nil || ok && (m.Version < want.Least || m.Version > want.Most) {
			c.find("%s is of version %d, not %d to %d (%v)", r.Name, m.Version, want.Least, want.Most, err)
		}
	}
	return nil
}

// mutable asks for what has no epoch: it may be as it was at any time, and must
// be usable.
func (c *checker) mutable(ctx context.Context) error {
	for i := range 5 {
		name := fmt.Sprint("memo", i)
		data, err := c.s.Derived(name)
		if err == nil && string(data) != string(text(name, 5000)) {
			c.find("%s is torn, of %d bytes", name, len(data))
		} else if err != nil && !errdefs.IsNotFound(err) {
			c.find("%v", err)
		}
		mounts, err := c.s.CacheMounts(ctx, []store.CacheMountRequest{{ID: fmt.Sprint("mount", i)}}, nil)
		if err == nil {
			err = errors.Join(writeFile(filepath.Join(mounts[0].Dir(), "after"), []byte("x"), false), mounts[0].Close())
		}
		if err != nil {
			c.find("mount%d: %v", i, err)
		}
	}
	if _, err := c.s.ContainerNames(); err != nil {
		c.find("%v", err)
	}
	ids, err := c.s.Containers()
	if err != nil {
		return err
	}
	for _, id := range ids {
		d, err := c.s.OpenContainer(id)
		if err == nil {
			err = d.Remove()
		}
		if err != nil {
			c.find("%v", err)
		}
	}
	return nil
}

// goOn does what the next process would: the same things, and collect.
func (c *checker) goOn(ctx context.Context) error {
	w := &worker{task: c.task, s: c.s, r: random("again")}
	for i, op := range []func(context.Context, string) error{w.blob, w.build, w.pull} {
		if err := op(ctx, fmt.Sprint(c.Name, i)); err != nil {
			c.find("the next process: %v", err)
		}
	}
	if _, err := c.s.Collect(ctx); err != nil {
		c.find("collect: %v", err)
	}
	return nil
}
