package ops

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
)

// promote takes over from the store in root.
func promote(t *testing.T, env *Env, root string, scopes ...string) Promoted {
	t.Helper()
	src, err := store.OpenSource(root)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	got, err := Promotion{Store: env.Store, Images: env.Images, Source: src, Scopes: scopes, Blobs: true}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := env.Store.Verify(context.Background(), true); err != nil || !r.Clean() {
		t.Errorf("verify: %+v, %v", r, err)
	}
	return got
}

func saveIn(t *testing.T, env *Env, scope string, key oci.Digest, files ...testFile) *Ref {
	t.Helper()
	r := testRef(t, env, files...)
	if _, err := NewCache(env.Store, env.Images, scope).Save(context.Background(), key, []solver.Result{r}, false, 0, "RUN"); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPromotionTakesVerifiedResultsOfTrustedScopes(t *testing.T) {
	ctx, from := context.Background(), t.TempDir()
	job, base := storeEnv(t, from), storeEnv(t, t.TempDir())
	good, bad := digest.FromString("good"), digest.FromString("bad")
	r := saveIn(t, job, "main", good, testFile{name: "a", content: "hello", uid: uint32(os.Geteuid())})
	saveIn(t, job, "pr-1", bad, testFile{name: "evil", content: "x", uid: uint32(os.Geteuid())})
	got := promote(t, base, from, "main")
	if got.Records != 1 || got.Layers != 1 || len(got.Refused)+len(got.Missing) != 0 {
		t.Errorf("promoted %+v", got)
	}
	out, err := NewCache(base.Store, base.Images, "main").Load(ctx, good)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(out)
	if out[0].ID() != r.ID() {
		t.Errorf("loaded %s, want %s", out[0].ID(), r.ID())
	}
	if c := content(t, out[0].(*Ref)); c != "a -rw-r--r-- hello\n" {
		t.Errorf("content:\n%s", c)
	}
	for _, scope := range []string{"pr-1", "main", ""} {
		if out, err := NewCache(base.Store, base.Images, scope).Load(ctx, bad); err == nil {
			t.Errorf("scope %q: the record of another was taken: %v", scope, out)
		}
	}
}

func TestPromotionRefusesWhatIsNotWhatItClaims(t *testing.T) {
	ctx, from := context.Background(), t.TempDir()
	job, base := storeEnv(t, from), storeEnv(t, t.TempDir())
	tree, forged := digest.FromString("tree"), digest.FromString("forged")
	r := saveIn(t, job, "", tree, testFile{name: "a", content: "hello", uid: uint32(os.Geteuid())})
	trees, err := r.Trees(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Another tree under the diffID of the step.
	if err := os.WriteFile(filepath.Join(trees[0].Dirs()[0], "a"), []byte("EVIL!"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A blob that is not what its name says, named as another layer's.
	evil := digest.FromString("what the name says")
	if err := os.WriteFile(filepath.Join(from, "blobs/sha256", evil.Encoded()), []byte("something else"), 0o444); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(recordData{Outputs: [][]image.Layer{{{DiffID: digest.FromString("diff"),
		Blob: &oci.Descriptor{MediaType: oci.MediaTypeLayerGzip, Digest: evil, Size: 14}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := job.Store.PutRecord(ctx, forged, store.Record{Data: data}, false); err != nil {
		t.Fatal(err)
	}
	got := promote(t, base, from, "")
	if got.Records != 0 || got.Layers != 0 || len(got.Refused) < 3 {
		t.Errorf("promoted %+v", got)
	}
	for _, what := range []string{"record " + tree.String(), "record " + forged.String(), "blob " + evil.String()} {
		if !strings.Contains(strings.Join(got.Refused, "\n"), what) {
			t.Errorf("%s was not refused: %q", what, got.Refused)
		}
	}
	for _, key := range []oci.Digest{tree, forged} {
		if _, err := base.Store.Record(ctx, key); err == nil {
			t.Errorf("the record %s was taken", key)
		}
	}
}

// A record that claims one scope under the key of another serves nobody.
func TestRecordUnderAnotherScopesKeyIsAMiss(t *testing.T) {
	ctx, from := context.Background(), t.TempDir()
	job, base := storeEnv(t, from), storeEnv(t, t.TempDir())
	key := digest.FromString("key")
	saveIn(t, job, "", store.ScopedKey("main", key), testFile{name: "evil", content: "x", uid: uint32(os.Geteuid())})
	if got := promote(t, base, from, ""); got.Records != 1 {
		t.Fatalf("promoted %+v", got)
	}
	if _, err := NewCache(base.Store, base.Images, "main").Load(ctx, key); err == nil {
		t.Error("the scope main serves what the default scope's writer made up")
	}
	// Whoever makes it honestly takes its place.
	r := saveIn(t, base, "main", key, testFile{name: "a", content: "good", uid: uint32(os.Geteuid())})
	out, err := NewCache(base.Store, base.Images, "main").Load(ctx, key)
	if err != nil || out[0].ID() != r.ID() {
		t.Errorf("loaded %v, %v", out, err)
	}
	closeAll(out)
}

// What leads out of the source, or would block whoever opens it, is passed over.
func TestPromotionIsNotLedAstray(t *testing.T) {
	from := t.TempDir()
	job, base := storeEnv(t, from), storeEnv(t, t.TempDir())
	saveIn(t, job, "", digest.FromString("key"), testFile{name: "a", content: "hello", uid: uint32(os.Geteuid())})
	secret := t.TempDir()
	d := digest.FromString("secret")
	if err := os.WriteFile(filepath.Join(secret, d.Encoded()), []byte("secret"), 0o444); err != nil {
		t.Fatal(err)
	}
	pipe := digest.FromString("pipe")
	steps := []error{
		os.RemoveAll(filepath.Join(from, "blobs/sha256")),
		os.Symlink(secret, filepath.Join(from, "blobs/sha256")),
		os.Mkdir(filepath.Join(from, "cache", "pp"), 0o755),
		mkfifo(filepath.Join(from, "cache", "pp", pipe.Encoded()+".json")),
	}
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := promote(t, base, from, ""); got.Blobs != 0 || got.Records != 1 {
		t.Errorf("promoted %+v", got)
	}
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o644) }
