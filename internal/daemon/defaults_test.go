package daemon

import (
	"context"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"den/internal/dockerapi"
	"den/internal/engine"
)

type created struct {
	dockerapi.Engine
	got *engine.CreateRequest
}

func (c *created) Create(_ context.Context, r *engine.CreateRequest) (engine.Created, error) {
	c.got = r
	return engine.Created{}, nil
}

func TestFlagsOfContainersHoldWhereARequestSaysNothing(t *testing.T) {
	inner := &created{}
	e, err := withDefaultsOf(inner, EngineOptions{Init: true, Ulimits: []string{"nofile=10:20", "core=0"}})
	if err != nil {
		t.Fatal(err)
	}
	r := &engine.CreateRequest{}
	r.Ulimits = []engine.Ulimit{{Name: "core", Soft: 5, Hard: 6}}
	if _, err := e.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if want := []engine.Ulimit{{Name: "core", Soft: 5, Hard: 6}, {Name: "nofile", Soft: 10, Hard: 20}}; !inner.got.Init || !reflect.DeepEqual(inner.got.Ulimits, want) {
		t.Errorf("init %t, ulimits %v, want %v", inner.got.Init, inner.got.Ulimits, want)
	}
	if _, err := withDefaultsOf(inner, EngineOptions{Ulimits: []string{"x"}}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestFlagsAboutLogsAreChecked(t *testing.T) {
	got, err := EngineOptions{LogDriver: "local", LogOptions: []string{"max-size=1m", "max-file=2", "compress=true"}}.logConfig()
	want := container.LogConfig{Type: "local", Config: map[string]string{"max-size": "1m", "max-file": "2", "compress": "true"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, o := range []EngineOptions{{LogDriver: "syslog"}, {LogOptions: []string{"max-size=x"}}, {LogOptions: []string{"y=1"}}, {LogOptions: []string{"max-file=-1"}}, {LogOptions: []string{"mode=sometimes"}}} {
		if _, err := o.logConfig(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
