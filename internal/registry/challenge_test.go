package registry

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestChallengesAreParsedAsRegistriesWriteThem(t *testing.T) {
	for header, want := range map[string][]challenge{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"`: {
			{"bearer", map[string]string{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:a/b:pull,push"}}},
		`Basic realm="Registry Realm"`: {{"basic", map[string]string{"realm": "Registry Realm"}}},
		`Basic realm=r`:                {{"basic", map[string]string{"realm": "r"}}},
		`BEARER Realm = https://x/y , scope = "a\"b"`: {
			{"bearer", map[string]string{"realm": "https://x/y", "scope": `a"b`}}},
		`Negotiate, Basic realm="r", charset="UTF-8", Bearer realm="https://x"`: {
			{"negotiate", map[string]string{}},
			{"basic", map[string]string{"realm": "r", "charset": "UTF-8"}},
			{"bearer", map[string]string{"realm": "https://x"}}},
		`Negotiate dG9rZW4=`: {{"negotiate", map[string]string{"dg9rzw4": ""}}},
		``:                   nil,
		`"`:                  nil,
		`Bearer realm="open`: {{"bearer", map[string]string{"realm": "open"}}},
		`Bearer a=1,a=2`:     {{"bearer", map[string]string{"a": "1"}}},
	} {
		got := parseChallenges([]string{header})
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(challenge{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", header, diff)
		}
	}
}

func TestBearerIsPickedBeforeBasic(t *testing.T) {
	h := http.Header{"Www-Authenticate": {`Basic realm="a"`, `Bearer realm="https://b"`}}
	if c := pickChallenge(h); c == nil || c.scheme != "bearer" {
		t.Errorf("picked %+v", c)
	}
	h = http.Header{"Www-Authenticate": {`Bearer service="no realm"`, `Digest x="y"`, `Basic realm="a"`}}
	if c := pickChallenge(h); c == nil || c.scheme != "basic" {
		t.Errorf("picked %+v", c)
	}
	if c := pickChallenge(http.Header{}); c != nil {
		t.Errorf("picked %+v", c)
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://auth.docker.io/token",service="registry.docker.io"`)
	f.Add(`Basic realm=r, Negotiate abc==, Bearer a="\`)
	f.Fuzz(func(t *testing.T, header string) {
		if got := parseChallenges([]string{header}); len(got) > maxChallenges {
			t.Errorf("%d challenges", len(got))
		}
	})
}

func TestScopesCoverWhatTheyInclude(t *testing.T) {
	have := []string{"repository:a:pull,push", "repository:b:pull"}
	for want, covered := range map[string]bool{
		"": true, "repository:a:pull": true, "repository:a:push,pull": true, "repository:b:pull": true,
		"repository:a:pull repository:b:pull": true, "repository:b:push": false, "repository:c:pull": false,
		"repository:a:pull repository:c:pull": false, "registry:catalog:*": false, "odd": false,
	} {
		if got := covers(have, want); got != covered {
			t.Errorf("covers %q: %v", want, got)
		}
	}
}

func TestHostsHaveOneName(t *testing.T) {
	for s, want := range map[string]string{
		"https://index.docker.io/v1/": "docker.io", "index.docker.io": "docker.io", "": "docker.io",
		"registry-1.docker.io": "docker.io", "Example.COM:5000": "example.com:5000",
		"http://r.example.com/v2/": "r.example.com", "r.example.com/team": "r.example.com/team", "[::1]:5000": "[::1]:5000",
	} {
		if got := canonicalHost(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "a.localhost": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:80": true,
		"localhost.example.com": false, "10.0.0.1": false, "docker.io": false, "128.0.0.1": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%s is loopback: %v", host, got)
		}
	}
}

func TestMirrorsAreParsed(t *testing.T) {
	for s, want := range map[string]mirror{
		"mirror.example.com":                     {"docker.io", "", "mirror.example.com", ""},
		"https://mirror.example.com/":            {"docker.io", "https", "mirror.example.com", ""},
		"http://10.0.0.1:5000/v2/":               {"docker.io", "http", "10.0.0.1:5000", ""},
		"harbor.example.com/hub":                 {"docker.io", "", "harbor.example.com", "hub"},
		"ghcr.io=https://harbor.example.com/a/b": {"ghcr.io", "https", "harbor.example.com", "a/b"},
		"index.docker.io=m":                      {"docker.io", "", "m", ""},
	} {
		got, err := parseMirror(s)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", s, got, err)
		}
	}
}

func TestRetryAfterIsSecondsOrADate(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "-5": 0, "x": 0, "99999999999999": 0,
		"Thu, 01 Jan 2026 00:01:00 GMT": time.Minute, "Wed, 31 Dec 2025 00:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %v", v, got)
		}
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	for retry := 1; retry < 100; retry++ {
		if d := backoff(retry); d < 100*time.Millisecond || d > 10*time.Second {
			t.Errorf("retry %d: %v", retry, d)
		}
	}
	if backoff(20) < 5*time.Second {
		t.Error("it does not grow")
	}
}
