package ops

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
	"den/internal/store/storetest"
)

func TestAnotherProcessFindsWhatOneSaved(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	one, two := storeEnv(t, root), storeEnv(t, root)
	r := testRef(t, one, testFile{name: "a", content: "hello"})
	key := digest.FromString("key")
	if _, err := NewCache(one.Store, one.Images).Save(ctx, key, []solver.Result{r}, false, time.Second, "RUN true"); err != nil {
		t.Fatal(err)
	}
	got, err := NewCache(two.Store, two.Images).Load(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(got)
	if len(got) != 1 || got[0].ID() != r.ID() {
		t.Fatalf("loaded %v, want %s", got, r.ID())
	}
	if c := content(t, got[0].(*Ref)); c != "a -rw-r--r-- hello\n" {
		t.Errorf("content:\n%s", c)
	}
	if created := got[0].(*Ref).Layers()[0].Created; created == nil || !created.Equal(*r.Layers()[0].Created) {
		t.Error("the layer's time of creation was lost")
	}
}

func TestFirstSavedResultWins(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	one, two := storeEnv(t, root), storeEnv(t, root)
	first, second := testRef(t, one, testFile{name: "a", content: "1"}), testRef(t, two, testFile{name: "a", content: "2"})
	key := digest.FromString("key")
	if _, err := NewCache(one.Store, one.Images).Save(ctx, key, []solver.Result{first}, false, 0, ""); err != nil {
		t.Fatal(err)
	}
	cache := NewCache(two.Store, two.Images)
	got, err := cache.Save(ctx, key, []solver.Result{second}, false, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if got[0].ID() != first.ID() {
		t.Errorf("the loser kept its own result")
	}
	closeAll(got)
	if got, err = cache.Save(ctx, key, []solver.Result{second}, true, 0, ""); err != nil || got[0] != solver.Result(second) {
		t.Errorf("replace: %v, %v", got, err)
	}
	if got, err = cache.Load(ctx, key); err != nil || got[0].ID() != second.ID() {
		t.Errorf("after replace: %v, %v", got, err)
	}
	closeAll(got)
}

func TestRecordOfAMissingLayerIsAMiss(t *testing.T) {
	ctx := context.Background()
	env := storeEnv(t, t.TempDir())
	c := &cache{store: env.Store, images: env.Images}
	gone := image.Layer{DiffID: digest.FromString("gone")}
	blob := oci.Descriptor{Digest: digest.FromString("blob"), Size: 10}
	for _, tt := range []struct {
		name  string
		layer image.Layer
		hit   bool
	}{
		{"nowhere", gone, false},
		{"a blob that nobody has", image.Layer{DiffID: gone.DiffID, Blob: &blob}, false},
		{"a blob in a registry", image.Layer{DiffID: gone.DiffID, Blob: &blob, Repo: "docker.io/library/x"}, true},
		{"no digest", image.Layer{DiffID: "../../etc"}, false},
	} {
		r, err := c.openStack(ctx, []image.Layer{tt.layer})
		if tt.hit != (err == nil) || err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if r != nil {
			r.Close()
		}
	}
}

func TestUncheckedLayersAreNotRecorded(t *testing.T) {
	ctx := context.Background()
	env := storeEnv(t, t.TempDir())
	cache := NewCache(env.Store, env.Images)
	key := digest.FromString("key")
	out := []solver.Result{lazyRef(env, "claimed")}
	got, err := cache.Save(ctx, key, out, false, 0, "")
	if err != nil || got[0] != out[0] {
		t.Fatal(got, err)
	}
	if _, err := cache.Load(ctx, key); !errdefs.IsNotFound(err) {
		t.Errorf("load: %v, want a miss", err)
	}
}

func TestALockedKeyIsWaitedFor(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	one, two := storeEnv(t, root), storeEnv(t, root)
	key := digest.FromString("key")
	unlock, err := NewCache(one.Store, one.Images).Lock(ctx, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	waits, done := make(chan struct{}), make(chan error)
	go func() {
		unlock, err := NewCache(two.Store, two.Images).Lock(ctx, key, func() { close(waits) })
		if err == nil {
			unlock()
		}
		done <- err
	}()
	<-waits
	select {
	case <-done:
		t.Fatal("got the key while another holds it")
	default:
	}
	unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRefsShareLeasesUntilTheLastCloses(t *testing.T) {
	ctx := context.Background()
	env := storeEnv(t, t.TempDir())
	r := testRef(t, env, testFile{name: "a", content: "x"})
	c := r.clone()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := r.Trees(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("use after close: %v", err)
	}
	if got := content(t, c); got != "a -rw-r--r-- x\n" {
		t.Errorf("clone after close of the first: %q", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestRecordIsFoundOnlyByWhoNamesItsScope(t *testing.T) {
	ctx := context.Background()
	env := storeEnv(t, t.TempDir())
	r := testRef(t, env, testFile{name: "a", content: "hello"})
	key := digest.FromString("key")
	scoped := NewCache(env.Store, env.Images, "pr-1", "main")
	if _, err := scoped.Save(ctx, key, []solver.Result{r}, false, 0, ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		scopes []string
		hit    bool
	}{{[]string{"pr-1"}, true}, {[]string{"pr-2", "pr-1"}, true}, {[]string{"pr-2"}, false}, {[]string{"main"}, false}, {nil, false}} {
		got, err := NewCache(env.Store, env.Images, c.scopes...).Load(ctx, key)
		if c.hit != (err == nil) || !c.hit && !errdefs.IsNotFound(err) {
			t.Errorf("scopes %q: %v", c.scopes, err)
		}
		if err := closeAll(got); err != nil {
			t.Error(err)
		}
	}
}

func TestRecordOfABaseServesWhereOnesOwnIsOfNoUse(t *testing.T) {
	ctx, below := context.Background(), t.TempDir()
	base := storeEnv(t, below)
	r := testRef(t, base, testFile{name: "a", content: "hello"})
	key := digest.FromString("key")
	if _, err := NewCache(base.Store, base.Images).Save(ctx, key, []solver.Result{r}, false, 0, ""); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(ctx, t.TempDir(), store.Options{EngineDir: t.TempDir(), Image: storetest.Images(), Bases: []string{below}, UnsafeFS: true, Durability: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	gone := digest.FromString("gone")
	own := store.Record{Layers: []oci.Digest{gone}, Data: []byte(`{"outputs":[[{"diffID":"` + gone.String() + `"}]]}`)}
	if _, err := st.PutRecord(ctx, key, own, false); err != nil {
		t.Fatal(err)
	}
	got, err := NewCache(st, base.Images).Load(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(got)
	if got[0].ID() != r.ID() {
		t.Errorf("got %s, want %s", got[0].ID(), r.ID())
	}
}
