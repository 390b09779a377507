// Package client speaks the Docker Engine API: what the command docker inside den's
// image needs of it, and no more.
//
// The daemon is found as docker's own client finds it: DOCKER_HOST, and for TCP
// DOCKER_TLS_VERIFY and DOCKER_CERT_PATH. Requests go to the API's paths without a
// version, which mean the daemon's newest.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// DefaultHost is where docker's daemon listens.
const DefaultHost = "unix:///var/run/docker.sock"

// A Client asks one daemon. It is safe for concurrent use.
type Client struct {
	// Host is the daemon's address as the user knows it.
	Host string
	// network and address are what to dial.
	network, address string
	tls              *tls.Config
	http             *http.Client
}

// Options say where the daemon is.
type Options struct {
	// Host is unix:///PATH, tcp://HOST:PORT or http(s)://HOST:PORT.
	Host string
	// TLS speaks TLS to TCP, Verify checks the daemon's certificate; CertDir has ca.pem,
	// cert.pem and key.pem.
	TLS, Verify bool
	CertDir     string
}

// New returns a client. It opens no connection.
func New(o Options) (*Client, error) {
	c := &Client{Host: o.Host}
	scheme, rest, found := strings.Cut(o.Host, "://")
	if !found {
		scheme, rest = "tcp", o.Host
	}
	switch scheme {
	case "unix":
		c.network, c.address = "unix", rest
	case "tcp", "http", "https":
		c.network, c.address = "tcp", strings.TrimSuffix(rest, "/")
		if o.TLS || o.Verify || scheme == "https" {
			var err error
			if c.tls, err = o.config(); err != nil {
				return nil, err
			}
		}
	default:
		return nil, fmt.Errorf("docker host %q: want unix:///PATH or tcp://HOST:PORT: %w", o.Host, errdefs.ErrInvalidArgument)
	}
	c.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}}
	return c, nil
}

func (o Options) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: !o.Verify}
	if pair, err := tls.LoadX509KeyPair(filepath.Join(o.CertDir, "cert.pem"), filepath.Join(o.CertDir, "key.pem")); err == nil {
		config.Certificates = []tls.Certificate{pair}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("client certificate in %s: %w", o.CertDir, err)
	}
	if !o.Verify {
		return config, nil
	}
	text, err := os.ReadFile(filepath.Join(o.CertDir, "ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w; set DOCKER_CERT_PATH to the directory of ca.pem, cert.pem and key.pem", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("certificate authority in %s: no certificate in it: %w", o.CertDir, errdefs.ErrInvalidArgument)
	}
	return config, nil
}

// dial opens a connection, with TLS where that is spoken.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, c.network, c.address)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the Docker daemon at %s: %w; is den serve running there, and DOCKER_HOST right?", c.Host, err)
	}
	if c.tls == nil {
		return conn, nil
	}
	config := c.tls.Clone()
	if config.ServerName, _, err = net.SplitHostPort(c.address); err != nil {
		config.ServerName = c.address
	}
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot connect to the Docker daemon at %s: %w", c.Host, err)
	}
	return t, nil
}

// An Error is the daemon's refusal. It unwraps to a class of errdefs.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return "Error response from daemon: " + e.Message }

// Unwrap gives the class that the status means; nil for those without.
func (e *Error) Unwrap() error {
	switch e.Status {
	case http.StatusNotFound:
		return errdefs.ErrNotFound
	case http.StatusConflict:
		return errdefs.ErrConflict
	case http.StatusBadRequest:
		return errdefs.ErrInvalidArgument
	case http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case http.StatusNotImplemented:
		return errdefs.ErrNotImplemented
	case http.StatusServiceUnavailable:
		return errdefs.ErrUnavailable
	}
	return nil
}

// maxAnswer bounds an answer that is kept in memory.
const maxAnswer = 64 << 20

// refusal reads the error of an answer, and closes it.
func refusal(r *http.Response) error {
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil {
		return err
	}
	var e struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(string(text))
	}
	if e.Message == "" {
		e.Message = r.Status
	}
	return &Error{Status: r.StatusCode, Message: e.Message}
}

// A Request is one call of the API.
type Request struct {
	Method, Path string
	Query        url.Values
	Header       http.Header
	// Body is sent as it is if it is a reader, else as JSON; nil is none.
	Body any
}

func (r Request) prepare(ctx context.Context, host string) (*http.Request, error) {
	var body io.Reader
	kind := ""
	switch b := r.Body.(type) {
	case nil:
	case io.Reader:
		body, kind = b, "application/x-tar"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		body, kind = bytes.NewReader(text), "application/json"
	}
	u := url.URL{Scheme: "http", Host: host, Path: r.Path, RawQuery: r.Query.Encode()}
	q, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, err
	}
	for name, values := range r.Header {
		q.Header[name] = values
	}
	if kind != "" {
		q.Header.Set("Content-Type", kind)
	}
	q.Header.Set("User-Agent", "den-docker")
	return q, nil
}

// Do asks, and gives the answer's body to read. A refusal is an *Error.
func (c *Client) Do(ctx context.Context, r Request) (io.ReadCloser, error) {
	_, body, err := c.Ask(ctx, r)
	return body, err
}

// Ask is Do that gives the answer's header, too.
func (c *Client) Ask(ctx context.Context, r Request) (http.Header, io.ReadCloser, error) {
	q, err := r.prepare(ctx, "docker")
	if err != nil {
		return nil, nil, err
	}
	answer, err := c.http.Do(q)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, nil, err
	}
	if answer.StatusCode >= http.StatusBadRequest {
		return nil, nil, refusal(answer)
	}
	return answer.Header, answer.Body, nil
}

// Call asks, and reads the JSON of the answer into v; nil drops it.
func (c *Client) Call(ctx context.Context, r Request, v any) error {
	body, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	defer body.Close()
	if v == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(body, maxAnswer))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("answer to %s %s: %w", r.Method, r.Path, err)
	}
	return nil
}

// AuthHeader is the header that carries a credential for a registry.
func AuthHeader(username, password, identityToken, server string) http.Header {
	text, err := json.Marshal(map[string]string{"username": username, "password": password, "identitytoken": identityToken, "serveraddress": server})
	if err != nil || username == "" && password == "" && identityToken == "" {
		text = []byte("{}")
	}
	return http.Header{"X-Registry-Auth": {base64.URLEncoding.EncodeToString(text)}}
}
