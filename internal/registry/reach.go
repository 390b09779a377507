package registry

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// A Place is a registry that somebody named: in a flag, a variable, a file.
type Place struct {
	// Host is HOST[:PORT], Scheme "http", "https" or empty: as for any host.
	Scheme, Host string
	// As says what it is known for, as "mirror of docker.io".
	As string
}

// Reach is how a registry answered.
type Reach struct {
	Place
	// Err says why it did not answer, or not as a registry does; nil if it did.
	Err error
	// Date is its clock, zero if it did not tell; At is when den's said the answer was there.
	Date, At time.Time
}

// Places are the registries of the configuration: mirrors, and insecure
// registries that are hosts and not networks. Those that only credentials are stored
// for are not among them.
func (c *Client) Places() []Place {
	var list []Place
	add := func(p Place) {
		same := func(q Place) bool { return q.Host == p.Host && q.Scheme == p.Scheme }
		if !slices.ContainsFunc(list, same) {
			list = append(list, p)
		}
	}
	items := append(append([]string{}, c.o.Mirrors...), splitList(c.o.Env("DEN_MIRROR"))...)
	for _, item := range append(items, c.daemon().Mirrors...) {
		if m, err := parseMirror(item); err == nil { // New refuses those of the options
			add(Place{Scheme: m.scheme, Host: m.host, As: "mirror of " + m.domain})
		}
	}
	var hosts []string
	for host, listed := range c.insecure().hosts {
		if listed {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	for _, host := range hosts {
		add(Place{Host: connectHost(host), As: "insecure registry"})
	}
	return list
}

// NamedPlace is the registry that a person means: HOST[:PORT], a URL, or what a
// reference begins with. Errors are errdefs.ErrInvalidArgument.
func NamedPlace(s string) (Place, error) {
	p := Place{As: "registry"}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		p.Scheme = strings.ToLower(scheme)
	}
	domain := canonicalHost(s)
	domain, _, _ = strings.Cut(domain, "/")
	p.Host = connectHost(domain)
	if !validHost(p.Host) || p.Scheme != "" && p.Scheme != "http" && p.Scheme != "https" {
		return p, fmt.Errorf("registry %q: want HOST[:PORT]: %w", s, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// Reach asks a registry once, with HEAD /v2/ and without a credential, and takes
// any answer that is not a fault for one. ctx bounds it.
func (c *Client) Reach(ctx context.Context, p Place) Reach {
	r := Reach{Place: p}
	r.Date, r.Err = c.head(ctx, p)
	r.At = c.o.Now()
	return r
}

func (c *Client) head(ctx context.Context, p Place) (date time.Time, err error) {
	v, err := c.server(ctx, p.Scheme, p.Host)
	if err != nil {
		return date, err
	}
	base, err := v.base(ctx)
	if err != nil {
		return date, err
	}
	req, err := http.NewRequest(http.MethodHead, base.String(), nil)
	if err != nil {
		return date, err
	}
	resp, err := v.sendOnce(ctx, req)
	if err != nil {
		return date, err
	}
	drain(resp)
	if date, err = http.ParseTime(resp.Header.Get("Date")); err != nil {
		date, err = time.Time{}, nil
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		err = fmt.Errorf("HEAD /v2/ answers %d: it is there and no registry", resp.StatusCode)
	case resp.StatusCode == http.StatusProxyAuthRequired:
		err = fmt.Errorf("the proxy answers %d: it wants a credential", resp.StatusCode)
	case resp.StatusCode >= 500:
		err = fmt.Errorf("HEAD /v2/ answers %d", resp.StatusCode)
	}
	return date, err
}
