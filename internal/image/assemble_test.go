package image

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

func layersMade(times ...time.Time) []Layer {
	var layers []Layer
	for i, at := range times {
		layers = append(layers, Layer{DiffID: digest.FromString(string(rune('a' + i))), Created: &at})
	}
	return layers
}

func at(hours int) time.Time { return day.Add(time.Duration(hours) * time.Hour) }

func ptr[T any](v T) *T { return &v }

func historyOf(t *testing.T, r Result) []oci.History {
	t.Helper()
	img, err := Assemble(r)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.Parse()
	if err != nil {
		t.Fatal(err)
	}
	return c.History
}

func configWith(t *testing.T, history ...oci.History) []byte {
	t.Helper()
	return marshal(t, map[string]any{
		"os": "linux", "architecture": "amd64", "history": history,
		"config": map[string]any{}, "unknown.field": map[string]int{"kept": 1},
	})
}

func TestHistoryIsAlignedAsBuildKitDoes(t *testing.T) {
	tests := []struct {
		name   string
		in     []oci.History
		layers []Layer
		want   []oci.History
	}{
		{
			"holes take the layer's time, and lines about nothing the one before",
			[]oci.History{
				{CreatedBy: "base", Created: ptr(at(0))},
				{CreatedBy: "ENV", EmptyLayer: true},
				{CreatedBy: "RUN"},
				{CreatedBy: "CMD", EmptyLayer: true},
			},
			layersMade(at(0), at(5)),
			[]oci.History{
				{CreatedBy: "base", Created: ptr(at(0))},
				{CreatedBy: "ENV", EmptyLayer: true, Created: ptr(at(5))},
				{CreatedBy: "RUN", Created: ptr(at(5))},
				{CreatedBy: "CMD", EmptyLayer: true, Created: ptr(at(5))},
			},
		},
		{
			"layers that the history forgot are added",
			[]oci.History{{CreatedBy: "base", Created: ptr(at(0))}},
			layersMade(at(0), at(3)),
			[]oci.History{
				{CreatedBy: "base", Created: ptr(at(0))},
				{CreatedBy: "created by buildkit", Comment: "buildkit.exporter.image.v0", Created: ptr(at(3))},
			},
		},
		{
			"lines without their layer are about nothing",
			[]oci.History{{CreatedBy: "a", Created: ptr(at(0))}, {CreatedBy: "b", Created: ptr(at(1))}},
			layersMade(at(0)),
			[]oci.History{{CreatedBy: "a", Created: ptr(at(0))}, {CreatedBy: "b", Created: ptr(at(1)), EmptyLayer: true}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := historyOf(t, Result{Config: configWith(t, tt.in...), Layers: tt.layers})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEpochLeavesTheBasesHistoryAlone(t *testing.T) {
	base := configWith(t, oci.History{CreatedBy: "base", Created: ptr(at(9))})
	config := configWith(t, oci.History{CreatedBy: "base", Created: ptr(at(9))}, oci.History{CreatedBy: "RUN"})
	got := historyOf(t, Result{Config: config, Base: base, Layers: layersMade(at(9), at(12)), Epoch: ptr(at(1))})
	want := []oci.History{{CreatedBy: "base", Created: ptr(at(9))}, {CreatedBy: "RUN", Created: ptr(at(1))}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUnknownFieldsOfAConfigurationAreKept(t *testing.T) {
	img := must(Assemble(Result{
		Config: configWith(t), Layers: layersMade(at(1)),
		Extra: map[string]json.RawMessage{"moby.buildkit.cache.v0": json.RawMessage(`"x"`)},
	}))(t)
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(img.Config, &fields); err != nil {
		t.Fatal(err)
	}
	if string(fields["unknown.field"]) != `{"kept":1}` || string(fields["moby.buildkit.cache.v0"]) != `"x"` {
		t.Errorf("configuration is %s", img.Config)
	}
	if string(fields["created"]) != string(marshal(t, at(1))) {
		t.Errorf("created is %s", fields["created"])
	}
	if img.ConfigDigest != digest.FromBytes(img.Config) {
		t.Error("digest is not the configuration's")
	}
}

func TestScratchNeedsNoConfiguration(t *testing.T) {
	img := must(Assemble(Result{}))(t)
	c := must(img.Parse())(t)
	if c.Config.WorkingDir != "/" || len(c.Config.Env) != 1 || len(c.RootFS.DiffIDs) != 0 {
		t.Errorf("configuration is %s", img.Config)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	many := make([]Layer, maxLayers+1)
	for i := range many {
		many[i].DiffID = digest.FromString("x")
	}
	for name, r := range map[string]Result{
		"null":             {Config: []byte(`null`)},
		"list":             {Config: []byte(`[]`)},
		"no platform":      {Config: []byte(`{}`)},
		"too many layers":  {Layers: many},
		"diffID of sha512": {Layers: []Layer{{DiffID: digest.SHA512.FromString("x")}}},
	} {
		if _, err := Assemble(r); err == nil {
			t.Errorf("%s: accepted", name)
		} else if name != "diffID of sha512" && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
