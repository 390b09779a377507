package cloud

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
)

// A flaky server breaks off after a few bytes of an object, as often as it is told.
type flaky struct {
	text   string
	etag   string
	breaks int
	asked  []string
}

// brokenBody ends in the middle.
type brokenBody struct{ io.Reader }

func (b brokenBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b brokenBody) Close() error { return nil }

func (f *flaky) RoundTrip(r *http.Request) (*http.Response, error) {
	from := 0
	asked := r.Header.Get("Range") + r.Header.Get("X-Ms-Range")
	f.asked = append(f.asked, asked+r.Header.Get("If-Match"))
	h := http.Header{"Etag": {f.etag}}
	status := http.StatusOK
	if asked != "" {
		if r.Header.Get("If-Match") != f.etag {
			return &http.Response{StatusCode: http.StatusPreconditionFailed, Status: "412", Body: http.NoBody, Header: http.Header{}, Request: r}, nil
		}
		if _, err := fmt.Sscanf(asked, "bytes=%d-", &from); err != nil {
			return nil, err
		}
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(f.text)-1, len(f.text)))
	}
	body := io.NopCloser(strings.NewReader(f.text[from:]))
	if f.breaks > 0 {
		f.breaks--
		body = brokenBody{strings.NewReader(f.text[from:min(from+3, len(f.text))])}
	}
	return &http.Response{StatusCode: status, Body: body, Header: h, Request: r}, nil
}

// read reads an object from a flaky server, through one of the clouds.
func (f *flaky) read(t *testing.T, open func(*Client) (io.ReadCloser, error)) (string, error) {
	t.Helper()
	vars := map[string]string{
		"AWS_ACCESS_KEY_ID": "ID", "AWS_SECRET_ACCESS_KEY": "S", "AZURE_STORAGE_ACCESS_KEY": base64.StdEncoding.EncodeToString([]byte("k")), "STORAGE_EMULATOR_HOST": "x.test",
	}
	r, err := open(New(Options{Transport: f, Env: func(name string) string { return vars[name] }}))
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func TestBrokenDownloadsAreTakenUp(t *testing.T) {
	for name, open := range map[string]func(*testing.T, *Client) (io.ReadCloser, error){
		"s3":    func(t *testing.T, c *Client) (io.ReadCloser, error) { return c.S3(t.Context(), Object{"b", "k"}) },
		"gcs":   func(t *testing.T, c *Client) (io.ReadCloser, error) { return c.GCS(t.Context(), Object{"b", "k"}) },
		"azure": func(t *testing.T, c *Client) (io.ReadCloser, error) { return c.AzureBlob(t.Context(), blobURL) },
		"web":   func(t *testing.T, c *Client) (io.ReadCloser, error) { return c.Web(t.Context(), "https://x.test/o") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &flaky{text: "hello, world", etag: `"1"`, breaks: 3}
				got, err := f.read(t, func(c *Client) (io.ReadCloser, error) { return open(t, c) })
				if err != nil || got != f.text || strings.Join(f.asked, " ") != ` bytes=3-"1" bytes=6-"1" bytes=9-"1"` {
					t.Errorf("%q, %v: %q", got, err, f.asked)
				}
			})
		})
	}
}

func TestDownloadsThatCannotBeTakenUpFail(t *testing.T) {
	web := func(t *testing.T) func(*Client) (io.ReadCloser, error) {
		return func(c *Client) (io.ReadCloser, error) { return c.Web(t.Context(), "https://x.test/o") }
	}
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{text: "hello", breaks: 1} // nothing says that it is the same object
		if got, err := f.read(t, web(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("without an ETag: %q, %v", got, err)
		}
		changing := &flaky{text: "hello", etag: `"1"`, breaks: 1}
		got, err := changing.read(t, func(c *Client) (io.ReadCloser, error) {
			r, err := c.Web(t.Context(), "https://x.test/o")
			changing.etag = `"2"`
			return r, err
		})
		if err == nil || !strings.Contains(err.Error(), "changed") {
			t.Errorf("another object: %q, %v", got, err)
		}
		dead := &stuck{flaky{text: "hello", etag: `"1"`, breaks: 100}}
		if got, err := dead.read(t, web(t)); !errdefs.IsUnavailable(err) || len(dead.asked) > tries {
			t.Errorf("a server that is gone: %q, %v after %d tries", got, err, len(dead.asked))
		}
	})
}

// stuck answers once, and then never with the rest.
type stuck struct{ flaky }

func (s *stuck) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.flaky.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusPartialContent {
		resp.StatusCode = http.StatusOK // the whole of it, from the beginning
	}
	return resp, err
}

func (s *stuck) read(t *testing.T, open func(*Client) (io.ReadCloser, error)) (string, error) {
	t.Helper()
	r, err := open(New(Options{Transport: s, Env: func(string) string { return "" }}))
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}
