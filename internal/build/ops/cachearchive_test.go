package ops

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
)

// exportAll writes what env's store has cached.
func exportAll(t testing.TB, env *Env, scopes ...string) ([]byte, Exported) {
	t.Helper()
	var b bytes.Buffer
	x, err := Exporter{Store: env.Store, Images: env.Images, Scopes: scopes, Cache: true, Mounts: true}.Write(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), x
}

func importInto(t testing.TB, env *Env, data []byte, scopes ...string) (Imported, error) {
	t.Helper()
	m, err := Importer{Store: env.Store, Images: env.Images, Scopes: scopes, Mounts: true, InUserns: env.InUserns}.Read(t.Context(), bytes.NewReader(data))
	if r, verr := env.Store.Verify(context.Background(), true); verr != nil || !r.Clean() {
		t.Errorf("verify: %+v, %v", r, verr)
	}
	return m, err
}

// mountOf returns the tree of a cache mount, which the caller may write to until it ends.
func mountOf(t *testing.T, env *Env, id string) *store.CacheMount {
	t.Helper()
	m, err := env.Store.CacheMounts(t.Context(), []store.CacheMountRequest{{ID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m[0].Close() })
	return m[0]
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestCacheAndCacheMountsGoFromStoreToStoreInAFile(t *testing.T) {
	ctx := context.Background()
	from, to := storeEnv(t, t.TempDir()), storeEnv(t, t.TempDir())
	key, other := digest.FromString("step"), digest.FromString("of another scope")
	r := saveIn(t, from, "main", key, testFile{name: "a", content: "hello", uid: uint32(os.Geteuid())})
	saveIn(t, from, "pr-1", other, testFile{name: "b", content: "x", uid: uint32(os.Geteuid())})
	m := mountOf(t, from, "/root/.cache")
	write(t, filepath.Join(m.Dir(), "deep/file"), "cached")
	if err := os.Symlink("../deep", filepath.Join(m.Dir(), "link")); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	busy, odd := mountOf(t, from, "in use"), mountOf(t, from, "odd")
	write(t, filepath.Join(odd.Dir(), ".wh.no-mark"), "a layer cannot have the name")
	if err := odd.Close(); err != nil {
		t.Fatal(err)
	}

	data, x := exportAll(t, from)
	if x.Records != 2 || x.Layers != 2 || x.CacheMounts != 1 || len(x.Missing) != 2 ||
		!strings.Contains(strings.Join(x.Missing, "\n"), "in use") || !strings.Contains(strings.Join(x.Missing, "\n"), "mount odd: ") {
		t.Errorf("exported %+v", x)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := importInto(t, to, data, "main")
	if err != nil || got.Records != 1 || got.Layers != 2 || got.CacheMounts != 1 || len(got.Refused)+len(got.Missing)+len(got.Kept) != 0 {
		t.Errorf("imported %+v, %v", got, err)
	}
	out, err := NewCache(to.Store, to.Images, "main").Load(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(out)
	if out[0].ID() != r.ID() {
		t.Errorf("loaded %s, want %s", out[0].ID(), r.ID())
	}
	if _, err := NewCache(to.Store, to.Images, "pr-1").Load(ctx, other); err == nil {
		t.Error("a record of a scope that is not trusted was taken")
	}
	copied := mountOf(t, to, "/root/.cache")
	if b, err := os.ReadFile(filepath.Join(copied.Dir(), "deep/file")); string(b) != "cached" {
		t.Errorf("deep/file: %q, %v", b, err)
	}
	if link, err := os.Readlink(filepath.Join(copied.Dir(), "link")); link != "../deep" {
		t.Errorf("link: %q, %v", link, err)
	}
	// A second import changes nothing of a tree that may be in use meanwhile.
	write(t, filepath.Join(copied.Dir(), "deep/file"), "newer")
	got, err = importInto(t, to, data, "main")
	if err != nil || got.CacheMounts != 0 || len(got.Kept) != 1 {
		t.Errorf("imported again %+v, %v", got, err)
	}
	if b, _ := os.ReadFile(filepath.Join(copied.Dir(), "deep/file")); string(b) != "newer" {
		t.Errorf("the tree was overwritten: %q", b)
	}
}

func TestPrivateScopesCanBeLeftOutOfTheFile(t *testing.T) {
	from := storeEnv(t, t.TempDir())
	saveIn(t, from, "main", digest.FromString("1"), testFile{name: "a", content: "1", uid: uint32(os.Geteuid())})
	saveIn(t, from, "secret", digest.FromString("2"), testFile{name: "a", content: "2", uid: uint32(os.Geteuid())})
	if _, x := exportAll(t, from, "main"); x.Records != 1 || x.Layers != 1 {
		t.Errorf("exported %+v", x)
	}
}

// archive makes a file of members, each a name and its content.
func archiveOf(t testing.TB, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		if err := tw.WriteHeader(&tar.Header{Name: members[i], Size: int64(len(members[i+1])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, members[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImportRefusesWhatIsNotWhatItClaims(t *testing.T) {
	const head = `{"format":1}`
	claimed, key := digest.FromString("another layer"), digest.FromString("key")
	data, err := json.Marshal(recordData{Outputs: [][]image.Layer{{{DiffID: claimed}}}})
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(store.Record{Data: data, Layers: []oci.Digest{claimed}})
	if err != nil {
		t.Fatal(err)
	}
	env := storeEnv(t, t.TempDir())
	got, err := importInto(t, env, archiveOf(t, archiveHead, head,
		"layers/"+claimed.Encoded()+".tar", string(archiveOf(t, "file", "evil")),
		"records/"+key.Encoded()+".json", string(record),
		"records/"+key.Encoded()+".json", "{",
		"cachemounts/"+key.Encoded()+".json", `{"id":"another"}`,
		"cachemounts/"+key.Encoded()+".tar", string(archiveOf(t, "file", "evil")),
		"../../etc/passwd", "x",
		"unknown/"+key.Encoded()+".json", "{}",
	), "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Records+got.Layers+got.CacheMounts != 0 || len(got.Missing) != 1 || len(got.Refused) != 6 {
		t.Errorf("imported %+v", got)
	}
	if _, err := env.Store.Record(t.Context(), key); err == nil {
		t.Error("the record was taken")
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "no archive": []byte(strings.Repeat("x", 4096)), "another tar": archiveOf(t, "file", "x"),
		"a later format": archiveOf(t, archiveHead, `{"format":2}`), "cut off": archiveOf(t, archiveHead, head, "layers/"+claimed.Encoded()+".tar", strings.Repeat("x", 4096))[:2500],
	} {
		if got, err := importInto(t, env, bad, ""); err == nil {
			t.Errorf("%s: imported %+v", name, got)
		}
	}
}

func FuzzImportCache(f *testing.F) {
	env := storeEnv(f, f.TempDir())
	f.Add(archiveOf(f, archiveHead, `{"format":1}`, "records/"+digest.FromString("k").Encoded()+".json", `{"data":{"outputs":[]}}`))
	f.Add(archiveOf(f, archiveHead, `{"format":1}`, "cachemounts/"+digest.FromString("k").Encoded()+".json", `{"id":"k"}`,
		"cachemounts/"+digest.FromString("k").Encoded()+".tar", string(archiveOf(f, "../../x", "y"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Importer{Store: env.Store, Images: env.Images, Scopes: []string{""}, Mounts: true}.Read(context.Background(), bytes.NewReader(data))
	})
}
