package daemon

import (
	"context"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"

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
	e, err := withDefaultsOf(inner, EngineOptions{Init: true, Ulimits: []string{"nofile=10:20", "core=0"}, LogDriver: "local", LogOptions: []string{"max-size=1m", "max-file=2", "compress=true"}})
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
	if want := (engine.LogConfig{Driver: "local", MaxBytes: 1 << 20, MaxFiles: 2}); inner.got.LogConfig != want {
		t.Errorf("log %+v, want %+v", inner.got.LogConfig, want)
	}
	if _, err := e.Create(t.Context(), &engine.CreateRequest{LogConfig: engine.LogConfig{Driver: "none"}}); err != nil || inner.got.LogConfig.Driver != "none" {
		t.Errorf("a request's own log: %+v, %v", inner.got.LogConfig, err)
	}
	for _, o := range []EngineOptions{{Ulimits: []string{"x"}}, {LogDriver: "syslog"}, {LogOptions: []string{"max-size=x"}}, {LogOptions: []string{"y=1"}}, {LogOptions: []string{"max-file=-1"}}} {
		if _, err := withDefaultsOf(inner, o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
