package oci

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestReferencesAreReadAsDockerDoes(t *testing.T) {
	for s, want := range map[string]struct{ canonical, familiar, object string }{
		"debian":                            {"docker.io/library/debian:latest", "debian:latest", "latest"},
		"debian:13":                         {"docker.io/library/debian:13", "debian:13", "13"},
		"moby/buildkit":                     {"docker.io/moby/buildkit:latest", "moby/buildkit:latest", "latest"},
		"docker.io/debian":                  {"docker.io/library/debian:latest", "debian:latest", "latest"},
		"index.docker.io/library/debian":    {"docker.io/library/debian:latest", "debian:latest", "latest"},
		"localhost/app":                     {"localhost/app:latest", "localhost/app:latest", "latest"},
		"localhost:5000/app:v1":             {"localhost:5000/app:v1", "localhost:5000/app:v1", "v1"},
		"[::1]:5000/app":                    {"[::1]:5000/app:latest", "[::1]:5000/app:latest", "latest"},
		"ghcr.io/a/b/c@" + someDigest:       {"ghcr.io/a/b/c@" + someDigest, "ghcr.io/a/b/c@" + someDigest, someDigest},
		"debian:13@" + someDigest:           {"docker.io/library/debian:13@" + someDigest, "debian:13@" + someDigest, someDigest},
		"docker.io/library/a/b":             {"docker.io/library/a/b:latest", "library/a/b:latest", "latest"},
		"Example.com/app":                   {"Example.com/app:latest", "Example.com/app:latest", "latest"},
		"docker.io/library/debian:Tag_1.0-": {"docker.io/library/debian:Tag_1.0-", "debian:Tag_1.0-", "Tag_1.0-"},
	} {
		r, err := ParseReference(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if r.String() != want.canonical || r.Familiar() != want.familiar || r.Object() != want.object {
			t.Errorf("%s: got %s, %s, %s; want %+v", s, r, r.Familiar(), r.Object(), want)
		}
	}
}

func TestBadReferencesAreInvalidArguments(t *testing.T) {
	for _, s := range []string{
		"", " ", "UPPER", "a/B", "https://ghcr.io/a", "a:b:c", "a@sha256:abc", "a@sha512:" + strings.Repeat("a", 128), "-a", "a//b", "a/../b",
		strings.TrimPrefix(someDigest, "sha256:"), ":tag", "a:" + strings.Repeat("t", 129), strings.Repeat("a", 5000), "a\x00b", "a\n",
	} {
		if r, err := ParseReference(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.40q: got %v, %v", s, r, err)
		}
	}
	if _, err := ParseReference("https://ghcr.io/a"); !strings.Contains(err.Error(), "leave out the https://") {
		t.Errorf("no hint: %v", err)
	}
}

func TestReferenceTakesAnotherTagOrDigest(t *testing.T) {
	r, err := ParseReference("debian:13")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.WithDigest(someDigest).String(); got != "docker.io/library/debian@"+someDigest {
		t.Error(got)
	}
	if got, err := r.WithTag("sid"); err != nil || got.Familiar() != "debian:sid" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := r.WithTag("no good"); err == nil {
		t.Error("a tag with a space was taken")
	}
	if n, err := ParseName("debian"); err != nil || n.Tag != "" || n.String() != "docker.io/library/debian" {
		t.Errorf("%v, %v", n, err)
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"debian", "a/b:c", "localhost:5000/a@" + someDigest, "[::1]/x", "docker.io/library/a/b", "index.docker.io/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		for _, form := range []string{r.String(), r.Familiar()} {
			again, err := ParseReference(form)
			if err != nil || again != r {
				t.Errorf("%q is %+v; its form %q reads as %+v, %v", s, r, form, again, err)
			}
		}
		if strings.Contains(r.Path, "..") || strings.HasPrefix(r.Path, "/") || r.Domain == "" || r.Object() == "" {
			t.Errorf("%q: unsafe %+v", s, r)
		}
	})
}
