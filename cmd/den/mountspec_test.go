package main

import (
	"errors"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"den/internal/engine"
)

func TestVolumeFlagIsReadAsDockerReadsIt(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	cwd, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	bind := func(source, target string) engine.Mount {
		return engine.Mount{Kind: engine.MountBind, Source: source, Target: target, CreateSource: true}
	}
	readOnly := bind("/a", "/b")
	readOnly.ReadOnly = true
	shared := bind("/a", "/b")
	shared.Options = []string{"rshared"}
	for s, want := range map[string]engine.Mount{
		"/data":             {Kind: engine.MountVolume, Target: "/data"},
		"/data/../x//":      {Kind: engine.MountVolume, Target: "/x"},
		"name:/data":        {Kind: engine.MountVolume, Source: "name", Target: "/data"},
		"name:/d:ro,nocopy": {Kind: engine.MountVolume, Source: "name", Target: "/d", ReadOnly: true, NoCopy: true},
		"/a:/b":             bind("/a", "/b"),
		"/a:/b:ro":          readOnly,
		"/a:/b:rw,z,cached": bind("/a", "/b"),
		"/a:/b:rshared":     shared,
		"./rel:/b":          bind(filepath.Join(cwd, "rel"), "/b"),
		".:/b":              bind(cwd, "/b"),
		"~/x:/b":            bind("/home/me/x", "/b"),
		"~:/b":              bind("/home/me", "/b"),
	} {
		got, err := parseVolume(s)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", s, err, d)
		}
	}
	for s, want := range map[string]string{
		"":             "empty section",
		":/b":          "empty section",
		"/a:":          "empty section",
		"/a:/b:":       "empty section",
		"/a:/b:ro:x":   "too many colons",
		"a:b":          "must be absolute",
		"data":         "must be absolute",
		"/a:/b:rx":     "invalid mode: rx",
		"/a:/":         "can't be '/'",
		"/a:/b/../..":  "can't be '/'",
		`C:\x:/b:ro:z`: "too many colons",
	} {
		_, err := parseVolume(s)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", s, want, err)
		}
	}
}

func TestMountFlagIsReadAsDockerReadsIt(t *testing.T) {
	for s, want := range map[string]engine.Mount{
		"target=/x":                                {Kind: engine.MountVolume, Target: "/x"},
		"type=volume,src=v,dst=/x,volume-nocopy":   {Kind: engine.MountVolume, Source: "v", Target: "/x", NoCopy: true},
		"type=volume,src=v,dst=/x,volume-nocopy=0": {Kind: engine.MountVolume, Source: "v", Target: "/x"},
		"type=bind,source=/a,destination=/x,ro":    {Kind: engine.MountBind, Source: "/a", Target: "/x", ReadOnly: true},
		`type=bind,"source=/a,b",target=/x`:        {Kind: engine.MountBind, Source: "/a,b", Target: "/x"},
		"TYPE=BIND,SRC=/a,DST=/x,readonly=false":   {Kind: engine.MountBind, Source: "/a", Target: "/x"},
		"type=bind,src=/a,dst=/x,bind-recursive=disabled,bind-propagation=rslave": {
			Kind: engine.MountBind, Source: "/a", Target: "/x", Shallow: true, Options: []string{"rslave"}},
		"type=bind,src=/a,dst=/x,bind-create-src": {Kind: engine.MountBind, Source: "/a", Target: "/x", CreateSource: true},
		"type=tmpfs,dst=/x,tmpfs-size=1k,tmpfs-mode=1777": {
			Kind: engine.MountTmpfs, Target: "/x", Options: []string{"size=1024", "mode=1777"}},
		" type=tmpfs,target=/x,consistency=cached ": {Kind: engine.MountTmpfs, Target: "/x"},
	} {
		got, err := parseMount(s)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", s, err, d)
		}
	}
	for s, want := range map[string]string{
		"":                                         "key=value",
		"type=bind,src=/a":                         "target must not be empty",
		"type=bind,dst=/x":                         "source must not be empty",
		"type=bind,src=/a,dst=x":                   "must be absolute",
		"type=nfs,dst=/x":                          "is not bind, volume or tmpfs",
		"type=bind,src=/a,dst=/x,wat=1":            `unknown option "wat=1"`,
		"type=bind,src=/a,dst=/x,wat":              `unknown option "wat"`,
		"type=bind,src,dst=/x":                     "must be a key=value pair",
		"type=bind,src=,dst=/x":                    "is empty",
		"type=bind,src= /a,dst=/x":                 "space",
		"type=bind,src=/a,dst=/x,ro=maybe":         "is not true, false",
		"type=bind,src=/a,dst=/x,tmpfs-size=1k":    "cannot mix 'tmpfs-*' options with mount type 'bind'",
		"type=volume,dst=/x,bind-propagation=rw":   "cannot mix 'bind-*'",
		"type=tmpfs,src=/a,dst=/x":                 "has no source",
		"type=tmpfs,dst=/x,tmpfs-size=big":         "tmpfs-size",
		"type=tmpfs,dst=/x,tmpfs-mode=9":           "tmpfs-mode",
		"src=/a,dst=/x":                            "write type=bind",
		"type=bind,src=/a,dst=/x,bind-recursive=x": "bind-recursive",
		`type=bind,"src=/a,dst=/x`:                 "key=value",
	} {
		_, err := parseMount(s)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", s, want, err)
		}
	}
}

func TestTmpfsFlagIsReadAsDockerReadsIt(t *testing.T) {
	got, err := parseTmpfs("/x:rw,exec,size=64m,ro")
	want := engine.Mount{Kind: engine.MountTmpfs, Target: "/x", ReadOnly: true, Options: []string{"exec", "size=64m"}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, s := range []string{"", "x", ":size=1", "/"} {
		if _, err := parseTmpfs(s); err == nil {
			t.Errorf("%q is a tmpfs", s)
		}
	}
}

func FuzzMounts(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "type=bind,src=/a,dst=/x", "/x:size=1", `"`, "::", "v:/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (engine.Mount, error){parseVolume, parseMount, parseTmpfs} {
			m, err := parse(s)
			if err != nil {
				continue
			}
			if !path.IsAbs(m.Target) || m.Target == "/" || path.Clean(m.Target) != m.Target {
				t.Errorf("%q: target is %q", s, m.Target)
			}
			if m.Kind == engine.MountBind && !filepath.IsAbs(m.Source) {
				t.Errorf("%q: source is %q", s, m.Source)
			}
		}
	})
}
