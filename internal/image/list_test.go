package image

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// labelled commits an image whose age, label and content follow from its
// name.
func (b *bench) labelled(hours int, label string, names ...string) *Image {
	b.t.Helper()
	config := fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","created":%q,"config":{"Labels":{%q:"yes"}}}`,
		at(hours).Format("2006-01-02T15:04:05Z"), label)
	img, err := Assemble(Result{Config: config, Layers: []Layer{b.built(regular("f", label))}})
	if err == nil {
		img, err = b.Commit(b.t.Context(), Built{Names: names, Images: []*Image{img}})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return img
}

// rows prints a list as docker images does.
func rows(list []*Summary) []string {
	var out []string
	for _, s := range list {
		for _, r := range s.Rows() {
			d := r.Digest
			if d != none {
				d = "digest"
			}
			out = append(out, fmt.Sprintf("%s %s %s", r.Repository, r.Tag, d))
		}
	}
	return out
}

func TestImagesAreListedAndFiltered(t *testing.T) {
	b := newBench(t)
	b.labelled(1, "old", "old:1")
	b.labelled(2, "mid", "mid:1", "mid:2", "example.com/team/mid:2")
	b.labelled(3, "none")
	b.reg.put(t, "pulled:1", twoLayers(t, "amd64"))
	must(b.Pull(t.Context(), b.name("pulled:1"), PullOptions{}))(t)
	pulled := b.name("pulled")
	tests := []struct {
		name    string
		filters map[string][]string
		want    []string
	}{
		{"all, youngest first", nil, []string{
			"<none> <none> <none>", "mid 1 <none>", "mid 2 <none>", "example.com/team/mid 2 <none>", "old 1 <none>", pulled + " 1 digest"}},
		{"dangling", map[string][]string{"dangling": {"true"}}, []string{"<none> <none> <none>"}},
		{"label", map[string][]string{"label": {"old=yes"}}, []string{"old 1 <none>"}},
		{"label that is not there", map[string][]string{"label": {"old", "mid"}}, nil},
		{"reference", map[string][]string{"reference": {"mid:2", "old"}}, []string{"mid 2 <none>", "old 1 <none>"}},
		{"reference pattern", map[string][]string{"reference": {"*/team/*"}}, []string{"example.com/team/mid 2 <none>"}},
		{"before", map[string][]string{"before": {"mid:1"}}, []string{"old 1 <none>", pulled + " 1 digest"}},
		{"since", map[string][]string{"since": {"mid:1"}}, []string{"<none> <none> <none>"}},
		{"until", map[string][]string{"until": {at(2).Format("2006-01-02T15:04:05Z")}}, []string{"old 1 <none>", pulled + " 1 digest"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := rows(must(b.List(t.Context(), tt.filters))(t))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for key, value := range map[string]string{"nonsense": "x", "dangling": "perhaps", "until": "soon", "reference": "["} {
		if _, err := b.List(t.Context(), map[string][]string{key: {value}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
}

func TestInspectAndHistorySpeakDockersJSON(t *testing.T) {
	b := newBench(t)
	f := twoLayers(t, "amd64")
	want := b.reg.put(t, "app:1", f)
	p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	if err := b.Tag(t.Context(), b.name("app:1"), "mine:2"); err != nil {
		t.Fatal(err)
	}
	words := strings.NewReplacer(
		digest.FromBytes(f.config).Encoded(), "CONFIG", want.Encoded(), "MANIFEST",
		digest.FromBytes(f.tars[0]).Encoded(), "LAYER0", digest.FromBytes(f.tars[1]).Encoded(), "LAYER1",
		b.reg.host, "HOST", fmt.Sprintf(`"size":%d`, len(f.manifest)), `"size":0`)
	for _, name := range []string{b.name("app:1"), shortID(p.ConfigDigest), string(p.ConfigDigest), p.ConfigDigest.Encoded()} {
		x := must(b.Inspect(t.Context(), name, nil))(t)
		if x.Metadata.LastTagTime.IsZero() {
			t.Error("no time of the last tag")
		}
		x.Metadata = Metadata{}
		golden(t, "inspect.json", []byte(words.Replace(string(marshal(t, x)))))
	}
	rows := must(b.History(t.Context(), "mine:2", nil))(t)
	golden(t, "history.json", []byte(words.Replace(string(marshal(t, rows)))))
	var generic []map[string]any
	if err := json.Unmarshal(marshal(t, rows), &generic); err != nil || len(generic) != 3 {
		t.Errorf("history is %v, %v", generic, err)
	}
}

func lines(removed []Removed) []string {
	var out []string
	for _, r := range removed {
		out = append(out, r.String())
	}
	return out
}

func TestRemoveSaysWhatDockerSays(t *testing.T) {
	b := newBench(t)
	img := b.labelled(1, "x", "web:1", "job:1")
	got := must(b.Remove(t.Context(), "web:1", RemoveOptions{}))(t)
	if diff := cmp.Diff([]string{"Untagged: web:1"}, lines(got)); diff != "" {
		t.Error(diff)
	}
	if _, err := b.Resolve(t.Context(), "web:1", ResolveOptions{Mode: ResolveLocal}); !errdefs.IsNotFound(err) {
		t.Errorf("web:1: %v", err)
	}
	if _, err := b.Remove(t.Context(), "job", RemoveOptions{}); !errdefs.IsNotFound(err) {
		t.Errorf("job:latest: %v", err)
	}
	got = must(b.Remove(t.Context(), "job:1", RemoveOptions{}))(t)
	want := []string{"Untagged: job:1", "Deleted: " + string(img.ConfigDigest), "Deleted: " + string(img.Layers[0].DiffID)}
	if diff := cmp.Diff(want, lines(got)); diff != "" {
		t.Error(diff)
	}
}

func TestRemoveByIDNeedsForceForSeveralNames(t *testing.T) {
	b := newBench(t)
	img := b.labelled(1, "x", "a:1", "b:1")
	_, err := b.Remove(t.Context(), shortID(img.ConfigDigest), RemoveOptions{})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "a, b") {
		t.Errorf("got %v", err)
	}
	got := must(b.Remove(t.Context(), shortID(img.ConfigDigest), RemoveOptions{Force: true}))(t)
	want := []string{"Untagged: a:1", "Untagged: b:1", "Deleted: " + string(img.ConfigDigest), "Deleted: " + string(img.Layers[0].DiffID)}
	if diff := cmp.Diff(want, lines(got)); diff != "" {
		t.Error(diff)
	}
	if list := must(b.List(t.Context(), nil))(t); len(list) != 0 {
		t.Errorf("left %v", rows(list))
	}
}

func TestImageInUseIsNotRemoved(t *testing.T) {
	b := newBench(t)
	img := b.labelled(1, "x", "a:1")
	used := New(b.st, nil, Options{InUse: func(d oci.Digest) []string {
		if d == img.ConfigDigest {
			return []string{"web"}
		}
		return nil
	}})
	if _, err := used.Remove(t.Context(), "a:1", RemoveOptions{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "container web") {
		t.Errorf("got %v", err)
	}
	if removed, _, err := used.Prune(t.Context(), PruneOptions{All: true}); err != nil || len(removed) != 0 {
		t.Errorf("pruned %v, %v", removed, err)
	}
}

func TestAmbiguousIDIsRefused(t *testing.T) {
	b := newBench(t)
	seen := map[string]bool{}
	prefix := ""
	for i := 0; prefix == ""; i++ { // 17 images share a first digit for sure
		img := b.labelled(i, fmt.Sprint("l", i), fmt.Sprint("n", i))
		p := img.ConfigDigest.Encoded()[:1]
		if seen[p] {
			prefix = p
		}
		seen[p] = true
	}
	_, err := b.Resolve(t.Context(), "sha256:"+prefix, ResolveOptions{Mode: ResolveLocal})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "ambiguous") {
		t.Errorf("got %v", err)
	}
}

func TestPruneTakesWhatHasNoName(t *testing.T) {
	b := newBench(t)
	b.labelled(1, "kept", "a:1")
	lost := b.labelled(2, "lost", "b:1")
	b.labelled(3, "next", "b:1") // takes the name
	removed, size, err := b.Prune(t.Context(), PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"Deleted: " + string(lost.ConfigDigest), "Deleted: " + string(lost.Layers[0].DiffID)}
	if diff := cmp.Diff(want, lines(removed)); diff != "" {
		t.Error(diff)
	}
	if size != int64(len("lost")) {
		t.Errorf("%d bytes can be taken", size)
	}
	if _, _, err := b.Prune(t.Context(), PruneOptions{All: true, Filters: map[string][]string{"label": {"next"}}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a 1 <none>"}, rows(must(b.List(t.Context(), nil))(t))); diff != "" {
		t.Error(diff)
	}
}

func TestCommittedImageIsMissingNothing(t *testing.T) {
	b := newBench(t)
	gone := Layer{DiffID: digest.FromString("gone")}
	img := must(Assemble(Result{Layers: []Layer{gone}}))(t)
	if _, err := b.Commit(t.Context(), Built{Names: []string{"a"}, Images: []*Image{img}}); !errdefs.IsNotFound(err) {
		t.Errorf("named an image without its layer: %v", err)
	}
	if _, err := b.Commit(t.Context(), Built{Names: []string{"a@" + string(gone.DiffID)}, Images: []*Image{img}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("named by digest: %v", err)
	}
}
