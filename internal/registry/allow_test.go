package registry_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/registry"
)

func TestExceptedHostsAreNotAllowedByAStar(t *testing.T) {
	plain := serve(t, good())
	secured, _ := tlsRegistry(t, good())
	behind := map[string]string{"plain.test:5000": plain, "tls.test:5000": secured}
	for _, test := range []struct {
		insecure, unverified []string
		host                 string
		want                 bool
	}{
		{[]string{"*"}, nil, "tls.test:5000", true},
		{[]string{"*", "!tls.test:5000"}, nil, "tls.test:5000", false},
		{[]string{"!tls.test:5000", "*", "tls.test:5000"}, nil, "tls.test:5000", true},
		{nil, []string{"tls.test:5000"}, "tls.test:5000", true},
		{nil, []string{"*"}, "tls.test:5000", true},
		{nil, []string{"*", "!tls.test:5000"}, "tls.test:5000", false},
		// Without verification is still TLS.
		{nil, []string{"*"}, "plain.test:5000", false},
	} {
		b := newBench(t, func(o *registry.Options) {
			o.Insecure, o.SkipVerify = test.insecure, test.unverified
			o.Proxy = connectProxy(t, func(host string) string { return behind[host] })
		})
		if err := b.Ping(t.Context(), test.host); (err == nil) != test.want {
			t.Errorf("insecure %v, unverified %v: %s: %v", test.insecure, test.unverified, test.host, err)
		}
	}
}

func TestMirrorsOnlyKeepsTheRegistryItselfOut(t *testing.T) {
	var asked sync.Map
	behind := route(good(), func(w http.ResponseWriter, r *http.Request) bool {
		asked.Store(r.Host, true)
		http.Error(w, "", http.StatusNotFound)
		return true
	})
	origin := serve(t, behind)
	mirror := serve(t, behind)
	b := newBench(t, func(o *registry.Options) {
		o.Mirrors, o.MirrorsOnly = []string{origin + "=http://" + mirror}, true
	})
	if _, _, err := b.Manifest(t.Context(), origin+"/app:1"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, ok := asked.Load(origin); ok {
		t.Error("the registry itself was asked")
	}
	if _, ok := asked.Load(mirror); !ok {
		t.Error("the mirror was not asked")
	}
}

func TestPushPermissionIsAskedForWithoutLeavingAnUpload(t *testing.T) {
	var log sync.Map
	addr := serve(t, route(good(), func(w http.ResponseWriter, r *http.Request) bool {
		log.Store(r.Method, true)
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return true
		}
		if strings.Contains(r.URL.Path, "/closed/") && r.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}))
	b := newBench(t, nil)
	if err := b.CheckPush(t.Context(), addr+"/open/app"); err != nil {
		t.Error(err)
	}
	if _, ok := log.Load(http.MethodDelete); !ok {
		t.Error("the upload was not given up")
	}
	if err := b.CheckPush(t.Context(), addr+"/closed/app"); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
}

func TestBuiltInHelpersStandInForPrograms(t *testing.T) {
	var asked []string
	know := func(name string) registry.CredentialFunc {
		return func(_ context.Context, host, repository string) (registry.Credential, error) {
			asked = append(asked, name+" "+host+" "+repository)
			return registry.Credential{Username: name, Password: "x"}, nil
		}
	}
	b := newBench(t, func(o *registry.Options) {
		o.Helpers = map[string]registry.CredentialFunc{"den-test-none": know("built-in")}
		o.Fallback = know("fallback")
	})
	b.env["DOCKER_AUTH_CONFIG"] = `{"credHelpers":{"a.test":"den-test-none"},"auths":{"b.test":{"auth":"dTpw"}}}`
	for host, want := range map[string]string{"a.test": "built-in", "b.test": "u", "c.test": "fallback"} {
		cred, err := b.Credential(t.Context(), host, "team/app")
		if err != nil || cred.Username != want {
			t.Errorf("%s: %q, %v; want %q", host, cred.Username, err, want)
		}
	}
	slices.Sort(asked)
	if want := []string{"built-in a.test team/app", "fallback c.test team/app"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

func TestClientCertificatesAreNamedForAHost(t *testing.T) {
	for _, bad := range []string{"", "host", "host=cert", "host=,key", "=cert,key"} {
		if _, err := registry.New(registry.Options{ClientCerts: []string{bad}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	b := newBench(t, func(o *registry.Options) { o.ClientCerts = []string{"a.test=/none.cert,/none.key"} })
	if err := b.Ping(t.Context(), "a.test"); err == nil || !strings.Contains(err.Error(), "/none.cert") {
		t.Error(err)
	}
}
