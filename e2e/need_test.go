package e2e

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// need skips where a program is missing.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// needRegistry skips where there is no docker-registry; it returns its host:port.
func needRegistry(t testing.TB) string {
	t.Helper()
	if env.registry == "" {
		t.Skip("needs docker-registry")
	}
	return env.registry
}

// needDebian skips where Debian's archive does not answer.
func needDebian(t *testing.T) {
	t.Helper()
	debianAnswers.Do(func() {
		c := http.Client{Timeout: 20 * time.Second}
		res, err := c.Head(debianArchive + "/dists/bookworm/Release")
		if err != nil {
			debianError = err
			return
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			debianError = errors.New(res.Status)
		}
	})
	if debianError != nil {
		t.Skipf("needs %s: %v", debianArchive, debianError)
	}
}

const debianArchive = "http://deb.debian.org/debian"

var (
	debianAnswers sync.Once
	debianError   error
)

type errMissing string

func (e errMissing) Error() string { return "needs " + string(e) }

// once makes something for all tests when the first one asks for it; an
// errMissing skips every test that asks.
func once(make func() (string, error)) func(testing.TB) string {
	var o sync.Once
	var made string
	var err error
	return func(t testing.TB) string {
		t.Helper()
		o.Do(func() { made, err = make() })
		var missing errMissing
		if errors.As(err, &missing) {
			t.Skip(missing.Error())
		}
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
}
