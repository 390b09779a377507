package buildah

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPlacesAreReadAsContainersTransportsHasThem(t *testing.T) {
	for text, want := range map[string]Place{
		"docker://example.com/app:1":    {Registry, "", "example.com/app:1"},
		"docker://localhost/app":        {Registry, "", "app"},
		"docker:29":                     {Storage, "", "docker:29"},
		"app":                           {Storage, "", "app"},
		"localhost/app:2":               {Storage, "", "app:2"},
		"localhost:5000/app":            {Storage, "", "localhost:5000/app"},
		"docker-archive:a.tar":          {DockerArchive, "a.tar", ""},
		"docker-archive:/x/a.tar:app:1": {DockerArchive, "/x/a.tar", "app:1"},
		"oci:dir:tag":                   {OCILayout, "dir", "tag"},
		"oci-archive:a.tar":             {OCIArchive, "a.tar", ""},
		"containers-storage:app":        {Storage, "", "app"},
		"containers-storage:[overlay@/var/lib/containers]app:1":      {Storage, "", "app:1"},
		"0123456789012345678901234567890123456789012345678901234567": {Storage, "", "0123456789012345678901234567890123456789012345678901234567"},
	} {
		got, err := ParsePlace(text, Storage)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "docker://", "oci:", "docker-archive:", "containers-storage:"} {
		if p, err := ParsePlace(bad, Storage); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", bad, p, err)
		}
	}
	for _, other := range []string{"dir:x", "docker-daemon:x", "sif:x"} {
		if _, err := ParsePlace(other, Storage); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	f.Add("oci:dir:tag")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlace(s, Storage)
		if err != nil {
			return
		}
		again, err := ParsePlace(p.String(), Storage)
		if err == nil && again != p && p.Transport != Storage {
			t.Errorf("%q is %+v, and %q is %+v", s, p, p, again)
		}
	})
}

func TestForeignWordsMeanDensChoice(t *testing.T) {
	for word, want := range map[string]string{"chroot": "", "oci": "", "rootless": "", "default": "", "userns": "userns", "": ""} {
		if got := Isolation(word); got != want {
			t.Errorf("isolation %s: %q", word, got)
		}
	}
	for word, want := range map[string]string{"": "default", "private": "default", "pasta": "default", "host": "host", "none": "none"} {
		if got, err := Network(word); err != nil || got != want {
			t.Errorf("network %s: %q, %v", word, got, err)
		}
	}
	if _, err := Network("ns:/proc/1/ns/net"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if got := BareID("sha256:abc") + BareID("def"); got != "abcdef" {
		t.Error(got)
	}
}

func TestConfigurationsAreEditedAndOtherwiseKept(t *testing.T) {
	e := Edits{Env: []string{"NEW=1", "OLD=changed", "FROM_ENV", "NONE"}, UnsetEnv: []string{"GONE"}, UnsetLabel: []string{"drop"}}
	raw := `{"architecture":"amd64","unknown":[1],"config":{"Env":["GONE=x","OLD=y","KEPT=z"],"Labels":{"drop":"1","keep":"2"},"Other":true}}`
	out, err := e.Apply([]byte(raw), func(name string) (string, bool) { return map[string]string{"FROM_ENV": "v"}[name], true })
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Unknown []int
		Config  struct {
			Env    []string
			Labels map[string]string
			Other  bool
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	c := doc.Config
	if !slices.Equal(c.Env, []string{"KEPT=z", "NEW=1", "OLD=changed", "FROM_ENV=v", "NONE="}) {
		t.Errorf("env %q", c.Env)
	}
	if len(c.Labels) != 1 || c.Labels["keep"] != "2" || !c.Other || len(doc.Unknown) != 1 {
		t.Errorf("%s", out)
	}
	if out, err = (Edits{UnsetEnv: []string{"A"}}).Apply([]byte(`{"config":{"Env":["A=1"]}}`), nil); err != nil || string(out) != `{"config":{}}` {
		t.Errorf("%s, %v", out, err)
	}
	for _, bad := range []string{"", "[]", `{"config":1}`, `{"config":{"Env":"x"}}`, `{"config":{"Labels":[]}}`} {
		if _, err := e.Apply([]byte(bad), os.LookupEnv); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzApply(f *testing.F) {
	f.Add([]byte(`{"config":{"Env":["A=1"],"Labels":{"a":"b"}}}`))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_, _ = Edits{Env: []string{"A=2"}, UnsetLabel: []string{"a"}}.Apply(raw, os.LookupEnv)
	})
}

func TestFilesAreFoundAsBuildahFindsThem(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if FindFile(dir) != "" || FindIgnore(dir) != "" {
		t.Error("found what is not there")
	}
	docker := put("Dockerfile", "FROM docker")
	if got := FindFile(dir); got != docker {
		t.Error(got)
	}
	container, ignore := put("Containerfile", "FROM container"), put(".containerignore", "x\n")
	if FindFile(dir) != container || FindIgnore(dir) != ignore {
		t.Error("the Containerfile does not go first")
	}
	aside := t.TempDir()
	path, err := Beside(aside, container, ignore)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{path: "FROM container", path + ".dockerignore": "x\n"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	args := put("args", "# no\n\nA=1\n  B=2 \n")
	if got, err := ReadLines(args); err != nil || !slices.Equal(got, []string{"A=1", "B=2"}) {
		t.Errorf("%q, %v", got, err)
	}
}
