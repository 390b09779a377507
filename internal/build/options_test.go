package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"den/internal/oci"
)

func lookup(env map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := env[k]; return v, ok }
}

func TestRequestBecomesTheFrontendsOptions(t *testing.T) {
	b := New(Options{})
	got, err := b.frontendOptions(&Request{
		BuildArgs: []string{"A=1", "B=x=y", "FROM_ENV", "NOT_IN_ENV", "EMPTY="},
		Labels:    []string{"l=v", "flag"},
		Target:    "t", Platforms: []string{"linux/arm64,amd64", "linux/amd64"},
		NoCacheFilter: []string{"a", "b"}, Pull: true, Network: "none",
		AddHosts: []string{"x:10.0.0.1", "y=[::1]", "z:host-gateway"},
		ShmSize:  "128m", Ulimits: []string{"nofile=10:20"}, CgroupParent: "/c", Call: "check",
		LookupEnv: lookup(map[string]string{"FROM_ENV": "e", "SOURCE_DATE_EPOCH": "7", "https_proxy": "http://p"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"build-arg:A": "1", "build-arg:B": "x=y", "build-arg:FROM_ENV": "e", "build-arg:EMPTY": "",
		"build-arg:SOURCE_DATE_EPOCH": "7", "build-arg:HTTPS_PROXY": "http://p",
		"label:l": "v", "label:flag": "", "target": "t", "platform": "linux/arm64,linux/amd64",
		"no-cache": "a,b", "image-resolve-mode": "pull", "force-network-mode": "none",
		"add-hosts": "x=10.0.0.1,y=::1,z=127.0.0.1", "shm-size": "134217728", "ulimit": "nofile=10:20",
		"cgroup-parent": "/c", "requestid": "frontend.lint", "frontend.caps": "moby.buildkit.frontend.subrequests+forward",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("options (-want +got):\n%s", d)
	}
}

func TestMistakesOnTheCommandLineAreInvalidArguments(t *testing.T) {
	for _, c := range []struct {
		text string
		r    Request
	}{
		{"empty key", Request{BuildArgs: []string{"=x"}}},
		{"--no-cache-filter", Request{NoCache: true, NoCacheFilter: []string{"a"}}},
		{"platform", Request{Platforms: []string{"a/b/c/d"}}},
		{"network mode", Request{Network: "bridge"}},
		{"invalid host", Request{AddHosts: []string{"x"}}},
		{"not an IP address", Request{AddHosts: []string{"x:y"}}},
		{"shm-size", Request{ShmSize: "lots"}},
		{"ulimit", Request{Ulimits: []string{"nofile"}}},
		{"call", Request{Call: "dance"}},
		{"unexpected", Request{Call: "check,ignore=1"}},
		{"invalid tag", Request{Tags: []string{"UPPER"}}},
		{"annotation", Request{Annotations: []string{"x"}}},
		{"no id", Request{Secrets: []string{"src=x"}}},
		{"unexpected key", Request{Secrets: []string{"id=x,colour=red"}}},
		{"given twice", Request{SSH: []string{"a=/dev/null", "a"}, LookupEnv: lookup(map[string]string{"SSH_AUTH_SOCK": "/s"})}},
		{"SSH_AUTH_SOCK", Request{SSH: []string{"default"}, LookupEnv: lookup(nil)}},
		{"entitlement", Request{Allow: []string{"everything"}}},
		{"tag is needed", Request{Push: true}},
		{"type is required", Request{Outputs: []string{"dest=x,name=y"}}},
		{"not known", Request{Outputs: []string{"type=floppy"}}},
		{"unknown attribute", Request{Outputs: []string{"type=oci,dest=x,colour=red"}}},
		{"compression", Request{Outputs: []string{"type=image,compression=lzw"}}},
		{"dest must be a directory", Request{Outputs: []string{"type=local"}}},
		{"dest is needed", Request{Outputs: []string{"type=oci"}}},
		{"cannot be pushed", Request{Outputs: []string{"type=oci,dest=x,push=true"}}},
	} {
		c.r.Context = t.TempDir()
		if c.r.LookupEnv == nil {
			c.r.LookupEnv = lookup(nil)
		}
		_, err := New(Options{}).parse(&c.r)
		if c.text == "given twice" && err != nil && !errdefs.IsInvalidArgument(err) {
			continue // /dev/null is no key
		}
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error is %v", c.text, err)
		}
	}
}

func TestProxiesOfDockersConfigurationComeAfterBuildArgs(t *testing.T) {
	dir := t.TempDir()
	config := `{"proxies":{"default":{"httpProxy":"http://config","noProxy":"config.local"},"tcp://other:1":{"httpProxy":"http://other"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"DOCKER_CONFIG": dir, "HTTP_PROXY": "http://env", "ALL_PROXY": "http://env"}
	got, err := proxyArgs(&Request{LookupEnv: lookup(env)}, map[string]string{"no_proxy": "typed"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"HTTP_PROXY": "http://config", "ALL_PROXY": "http://env"}, got); d != "" {
		t.Errorf("proxies (-want +got):\n%s", d)
	}
	env["DOCKER_HOST"] = "tcp://other:1"
	got, err = proxyArgs(&Request{LookupEnv: lookup(env)}, nil)
	if err != nil || got["HTTP_PROXY"] != "http://other" || got["NO_PROXY"] != "" {
		t.Errorf("proxies of the other daemon are %v, %v", got, err)
	}
}

func TestOutputs(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Request
		want []output
	}{
		{"none", Request{Tags: []string{"a"}}, []output{{kind: outputImage, store: true, names: []string{"a"}}}},
		{"push", Request{Tags: []string{"a"}, Push: true}, []output{{kind: outputImage, store: true, push: true, names: []string{"a"}}}},
		{"directory", Request{Outputs: []string{"out"}}, []output{{kind: outputLocal, dest: "out"}}},
		{"standard output", Request{Outputs: []string{"-"}}, []output{{kind: outputTar, dest: "-"}}},
		{"load beside", Request{Outputs: []string{"type=tar,dest=x"}, Load: true}, []output{{kind: outputTar, dest: "x"}, {kind: outputImage, store: true}}},
		{"registry", Request{Outputs: []string{`type=registry,"name=a,b:1",compression=zstd,compression-level=7,oci-mediatypes=false`}}, []output{{
			kind: outputImage, store: true, push: true, names: []string{"a", "b:1"},
		}}},
		{"docker into the store", Request{Outputs: []string{"type=docker"}}, []output{{kind: outputImage, store: true}}},
		{"layout", Request{Outputs: []string{"type=oci,tar=false,dest=d"}}, []output{{kind: outputOCI, dest: "d", directory: true}}},
		{"annotated", Request{Outputs: []string{"type=oci,dest=d,annotation.a=1,annotation-index.b=2,annotation-manifest[linux/amd64].c.d=3"}}, []output{{
			kind: outputOCI, dest: "d", annotations: []string{"index:b=2", "manifest:a=1", "manifest[linux/amd64]:c.d=3"},
		}}},
		{"by digest", Request{Tags: []string{"a"}, Outputs: []string{"type=image,push-by-digest=true,push=true"}}, []output{{
			kind: outputImage, push: true, byDigest: true, names: []string{"a"},
		}}},
	} {
		got, err := parseOutputs(&c.r)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.name == "registry" {
			f := got[0].format
			if f.Compression != "zstd" || f.Level != 7 || !f.DockerTypes {
				t.Errorf("format is %+v", f)
			}
		}
		for i := range got {
			got[i].format = c.want[0].format
		}
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(output{}), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".format" }, cmp.Ignore())); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestAnnotationsGoWhereTheySay(t *testing.T) {
	a, err := parseAnnotations([]string{
		"plain=1", "index:i=2", "manifest,index:both=3", "manifest[linux/arm64]:only=4", "org.x:y=5",
		"manifest-descriptor:d=6", "index-descriptor,manifest-descriptor[linux/arm64]:e=7",
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"i": "2", "both": "3"}, a.index); d != "" {
		t.Errorf("index (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"e": "7"}, a.indexDescriptor); d != "" {
		t.Errorf("descriptor of the index (-want +got):\n%s", d)
	}
	arm, amd := oci.Platform{OS: "linux", Architecture: "arm64"}, oci.Platform{OS: "linux", Architecture: "amd64"}
	for _, c := range []struct {
		name      string
		want, got map[string]string
	}{
		{"amd64", map[string]string{"plain": "1", "both": "3", "org.x:y": "5"}, forPlatform(a.manifest, amd)},
		{"arm64", map[string]string{"plain": "1", "both": "3", "org.x:y": "5", "only": "4"}, forPlatform(a.manifest, arm)},
		{"descriptor of amd64", map[string]string{"d": "6"}, forPlatform(a.descriptor, amd)},
		{"descriptor of arm64", map[string]string{"d": "6", "e": "7"}, forPlatform(a.descriptor, arm)},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	for _, bad := range []string{"index[linux/amd64]:a=b", "manifest[no/such/platform/x]:a=b", "=b", "a"} {
		if _, err := parseAnnotations([]string{bad}); err == nil {
			t.Errorf("annotation %q is taken", bad)
		}
	}
}

func TestSecretsAreReadWhenWanted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte("from file"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"VAR": "from env", "same": "by id"}
	s, err := parseSecrets(&Request{LookupEnv: lookup(env), Secrets: []string{
		"id=f,src=" + file, "id=e,env=VAR", "id=same", "id=t,type=env,src=VAR",
	}})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{"f": "from file", "e": "from env", "same": "by id", "t": "from env"} {
		got, err := s.GetSecret(t.Context(), id)
		if err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", id, got, err)
		}
	}
	if _, err := s.GetSecret(t.Context(), "other"); !errdefs.IsNotFound(err) {
		t.Errorf("error is %v", err)
	}
	if err := os.WriteFile(file, make([]byte, maxSecretBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetSecret(t.Context(), "f"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("large secret: error is %v", err)
	}
	if _, err := parseSecrets(&Request{LookupEnv: lookup(nil), Secrets: []string{"id=gone,src=/nowhere"}}); err == nil {
		t.Error("a secret without its file was accepted")
	}
}

func TestEntitlementsAreGivenNotAssumed(t *testing.T) {
	for want, r := range map[string]Request{
		"":                               {},
		"network.host":                   {Network: "host"},
		"security.insecure network.host": {Allow: []string{"security.insecure,network.host", "fs.read=/x"}},
	} {
		got, err := entitlements(&r)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %v, %v", want, got, err)
		}
	}
	if _, err := entitlements(&Request{Allow: []string{"device"}}); !errdefs.IsNotImplemented(err) {
		t.Errorf("device: %v", err)
	}
}
