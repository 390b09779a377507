package kaniko

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"den/internal/cloud"
	"den/internal/registry"
)

// Registry are the flags about registries.
type Registry struct {
	Insecure, InsecurePull           bool
	SkipTLSVerify, SkipTLSVerifyPull bool
	InsecureRegistries               []string
	SkipTLSVerifyRegistries          []string
	Certificates, ClientCertificates []string
	Mirrors, Maps                    []string
	SkipDefaultFallback              bool
	CredentialHelpers                []string
	PushRetry                        int
	IgnoreImmutableTags              bool
}

// Settings are the same for a registry.Client.
type Settings struct {
	Mirrors, Insecure, SkipVerify, Certs, ClientCerts []string
	MirrorsOnly                                       bool
}

// Settings translates. --insecure and --skip-tls-verify are about the destinations,
// their -pull forms about every other host.
func (r Registry) Settings(destinations []name.Tag) Settings {
	s := Settings{
		Insecure: r.InsecureRegistries, SkipVerify: r.SkipTLSVerifyRegistries,
		Certs: r.Certificates, ClientCerts: r.ClientCertificates, MirrorsOnly: r.SkipDefaultFallback,
	}
	s.Insecure = allow(s.Insecure, destinations, r.Insecure, r.InsecurePull)
	s.SkipVerify = allow(s.SkipVerify, destinations, r.SkipTLSVerify, r.SkipTLSVerifyPull)
	for _, m := range r.Maps {
		for pair := range strings.SplitSeq(m, ";") {
			if pair = strings.TrimSpace(pair); pair != "" {
				s.Mirrors = append(s.Mirrors, pair)
			}
		}
	}
	s.Mirrors = append(s.Mirrors, r.Mirrors...)
	return s
}

func allow(list []string, destinations []name.Tag, push, pull bool) []string {
	out := append([]string(nil), list...)
	for _, d := range destinations {
		switch host := d.RegistryStr(); {
		case push:
			out = append(out, host)
		case pull: // a push must not be talked down by what was allowed to pulls
			out = append(out, "!"+host)
		}
	}
	if pull {
		out = append(out, "*")
	}
	return out
}

// helperNames are those of --credential-helpers, in the order they are asked.
var helperNames = [...]string{"env", "google", "ecr", "acr", "gitlab"}

// Keychain asks the helpers that --credential-helpers names: all of them if it was
// not given, none if it is empty. lookup reads variables.
func Keychain(helpers []string, c *cloud.Client, lookup func(string) (string, bool)) (registry.CredentialFunc, error) {
	if helpers == nil {
		helpers = helperNames[:]
	}
	ask := map[string]func(context.Context, string) (cloud.Login, error){
		"google": c.GCR, "ecr": c.ECR, "acr": c.ACR,
		"env":    func(_ context.Context, host string) (cloud.Login, error) { return envLogin(host, lookup), nil },
		"gitlab": func(_ context.Context, host string) (cloud.Login, error) { return gitlabLogin(host, lookup), nil },
	}
	var list []func(context.Context, string) (cloud.Login, error)
	for _, h := range helpers {
		if h == "" {
			continue
		}
		f, ok := ask[h]
		if !ok {
			return nil, invalid("--credential-helpers %q: want %s", h, strings.Join(helperNames[:], ", "))
		}
		list = append(list, f)
	}
	return func(ctx context.Context, host, _ string) (registry.Credential, error) {
		for _, f := range list {
			login, err := f(ctx, host)
			if err != nil || login != (cloud.Login{}) {
				return registry.Credential{Username: login.Username, Password: login.Password}, err
			}
		}
		return registry.Credential{}, nil
	}, nil
}

// envLogin finds KANIKO_<HOST>_USER and _PASSWORD, where each part of the host's
// name from the left may be missing: GHCR_IO, then IO.
func envLogin(host string, lookup func(string) (string, bool)) cloud.Login {
	parts := strings.Split(strings.ToUpper(strings.ReplaceAll(host, "-", "_")), ".")
	for i := range parts {
		prefix := "KANIKO_" + strings.Join(parts[i:], "_")
		user, ok := lookup(prefix + "_USER")
		if !ok {
			continue
		}
		if password, ok := lookup(prefix + "_PASSWORD"); ok {
			return cloud.Login{Username: user, Password: password}
		}
	}
	return cloud.Login{}
}

// gitlabLogin is what GitLab gives each job
// (docs.gitlab.com/ci/variables/predefined_variables).
func gitlabLogin(host string, lookup func(string) (string, bool)) cloud.Login {
	for _, prefix := range []string{"CI_REGISTRY", "CI_DEPENDENCY_PROXY"} {
		server, _ := lookup(prefix)
		if prefix == "CI_DEPENDENCY_PROXY" {
			server, _ = lookup(prefix + "_SERVER")
		}
		user, _ := lookup(prefix + "_USER")
		password, _ := lookup(prefix + "_PASSWORD")
		if server != "" && user != "" && sameHost(server, host) {
			return cloud.Login{Username: user, Password: password}
		}
	}
	return cloud.Login{}
}

// sameHost compares hosts of which one may name the port that https has anyway.
func sameHost(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, ":443"), strings.TrimSuffix(b, ":443"))
}

// LaxTransport is for a git server that --git=insecure-skip-tls=true excuses: any
// certificate for that host, and Go's own rules for all others.
func LaxTransport(context string) http.RoundTripper {
	base, ok := http.DefaultTransport.(*http.Transport)
	_, rest, _ := strings.Cut(context, "://")
	u, err := url.Parse("https://" + rest)
	if !ok || err != nil {
		return nil
	}
	lax := base.Clone()
	lax.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} //nolint:gosec // the user asked for it
	return &laxTransport{host: u.Host, lax: lax, strict: base}
}

type laxTransport struct {
	host        string
	lax, strict http.RoundTripper
}

func (t *laxTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == t.host {
		return t.lax.RoundTrip(r)
	}
	return t.strict.RoundTrip(r)
}
