package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
)

const (
	// maxHTTPBytes bounds a download. The disk is smaller, as a rule.
	maxHTTPBytes = 1 << 40
	// stallTimeout is how long a server may say nothing.
	stallTimeout = 60 * time.Second
	// httpTries is how often a request is made that fails for a reason that
	// may pass; the pause doubles from httpPause.
	httpTries = 4
	httpPause = 250 * time.Millisecond
	// maxMemoBytes bounds what is believed of a memo file.
	maxMemoBytes = 64 << 10
)

// find asks the server for the file. What it said last time is in the store,
// so that a file with the same entity tag is not sent again.
func (o *httpOp) find(ctx context.Context, sink progress.Sink) error {
	memo := o.memoName()
	if old := readFound(o.env.Store, memo); old != nil && o.unchanged(ctx, old) {
		o.found = old
		return nil
	}
	f := &httpFetch{op: o, sink: sink}
	resp, err := f.get(ctx, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	blob, err := o.env.Store.PutBlob(ctx, resp.Body)
	f.end()
	if err != nil {
		return fmt.Errorf("download %s: %w", redact(o.attrs.url), err)
	}
	o.found = &httpFound{
		Digest: blob.Digest(), ETag: etag(resp), Disposition: resp.Header.Get("Content-Disposition"),
		LastModified: resp.Header.Get("Last-Modified"),
	}
	if o.found.ETag != "" {
		// Losing the memo costs a download.
		if data, err := json.Marshal(o.found); err == nil {
			_ = o.env.Store.PutDerived(memo, data)
		}
	}
	// Not held any longer: a hit in the cache does not need it.
	return blob.Close()
}

// memoName names what is remembered of this request.
func (o *httpOp) memoName() string {
	data, _ := json.Marshal(struct {
		URL     string
		Secret  string
		Headers []httpHeader
	}{o.attrs.url, o.attrs.authSecret, o.attrs.headers})
	return "http/" + digest.FromBytes(data).Encoded()
}

func readFound(st *store.Store, name string) *httpFound {
	data, err := st.Derived(name)
	if err != nil || len(data) > maxMemoBytes {
		return nil
	}
	var f httpFound
	if json.Unmarshal(data, &f) != nil || f.ETag == "" || oci.CheckDigest(f.Digest) != nil {
		return nil
	}
	return &f
}

// unchanged asks whether the file still has the tag that old had. HEAD with a
// comparison here, since servers exist that give tags and ignore If-None-Match.
func (o *httpOp) unchanged(ctx context.Context, old *httpFound) bool {
	ctx, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	req, err := o.request(ctx, http.MethodHead)
	if err != nil {
		return false
	}
	req.Header.Set("If-None-Match", old.ETag)
	// Go asks for gzip in a GET only; a server may give other tags without.
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := o.env.httpClient().Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	switch got := etag(resp); resp.StatusCode {
	case http.StatusNotModified:
		return got == "" || got == old.ETag
	case http.StatusOK:
		return got == old.ETag
	default:
		return false
	}
}

// etag is the entity tag, weak or strong.
func etag(resp *http.Response) string {
	return strings.TrimPrefix(resp.Header.Get("ETag"), "W/")
}

// request makes a request with the headers and the authorisation of the build.
func (o *httpOp) request(ctx context.Context, method string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, o.attrs.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "den")
	for _, h := range o.attrs.headers {
		req.Header.Set(h.Name, h.Value)
	}
	auth, err := o.authorization(ctx, req.URL)
	if err != nil {
		return nil, err
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	return req, nil
}

// authorization is the secret that the definition names, or else the one that
// BuildKit's convention has for the host.
func (o *httpOp) authorization(ctx context.Context, u *url.URL) (string, error) {
	if o.attrs.authSecret != "" {
		v, err := o.env.secret(ctx, o.attrs.authSecret)
		return string(v), err
	}
	if o.env.Secrets == nil {
		return "", nil
	}
	for _, s := range []struct{ id, prefix string }{
		{"HTTP_AUTH_TOKEN_" + u.Hostname(), "Bearer "},
		{"HTTP_AUTH_HEADER_" + u.Hostname(), ""},
	} {
		v, err := o.env.secret(ctx, s.id)
		if err == nil {
			return s.prefix + string(v), nil
		}
		if !isNoSecret(err) {
			return "", err
		}
	}
	return "", nil
}

func (e *Env) httpClient() *http.Client { return &http.Client{Transport: e.Transport} }

// An httpFetch is one download and the status line that shows it.
type httpFetch struct {
	op      *httpOp
	sink    progress.Sink
	started time.Time
	total   int64
	current int64
	shown   time.Time
}

// get requests the file from offset on, trying again what may pass.
func (f *httpFetch) get(ctx context.Context, offset int64) (*http.Response, error) {
	f.started = time.Now()
	pause := httpPause
	for try := 1; ; try++ {
		resp, err := f.try(ctx, offset)
		if err == nil {
			return resp, nil
		}
		var again *retryError
		if !errors.As(err, &again) || try == httpTries {
			return nil, fmt.Errorf("download %s: %w", redact(f.op.attrs.url), err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// A retryError may not happen the next time.
type retryError struct{ error }

func (e *retryError) Unwrap() error { return e.error }

func (f *httpFetch) try(ctx context.Context, offset int64) (*http.Response, error) {
	ctx, stall := newStall(ctx, stallTimeout)
	req, err := f.op.request(ctx, http.MethodGet)
	if err != nil {
		stall.stop()
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	resp, err := f.op.env.httpClient().Do(req)
	if err != nil {
		stall.stop()
		var op *net.OpError
		if errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil, &retryError{err}
		}
		return nil, err
	}
	if err := checkStatus(resp, offset); err != nil {
		resp.Body.Close()
		stall.stop()
		return nil, err
	}
	if resp.StatusCode == http.StatusOK && offset > 0 {
		// The server has no ranges: what is known already comes again.
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			resp.Body.Close()
			stall.stop()
			return nil, &retryError{err}
		}
	}
	f.current, f.total = offset, resp.ContentLength+offset
	resp.Body = &httpBody{
		Reader: &boundedReader{r: resp.Body, left: maxHTTPBytes, name: "response"}, body: resp.Body, stall: stall, fetch: f,
	}
	return resp, nil
}

// checkStatus returns an error for an answer without the content.
func checkStatus(resp *http.Response, offset int64) error {
	switch c := resp.StatusCode; {
	case c == http.StatusOK, c == http.StatusPartialContent && offset > 0:
		return nil
	case c == http.StatusTooManyRequests, c >= 500:
		return &retryError{fmt.Errorf("server says %s", resp.Status)}
	case c == http.StatusNotFound, c == http.StatusGone:
		return fmt.Errorf("server says %s: %w", resp.Status, errdefs.ErrNotFound)
	case c == http.StatusUnauthorized, c == http.StatusForbidden:
		return fmt.Errorf("server says %s: %w", resp.Status, errdefs.ErrPermissionDenied)
	default:
		return fmt.Errorf("server says %s: %w", resp.Status, errdefs.ErrUnknown)
	}
}

// dispositionName is the file name of a Content-Disposition header, or "".
func dispositionName(header string) string {
	_, params, err := mime.ParseMediaType(header)
	if err != nil || strings.HasSuffix(params["filename"], "/") {
		return ""
	}
	if base := path.Base(params["filename"]); base != "." && base != "/" {
		return base
	}
	return ""
}

// httpFiles is the tree that holds the downloaded file alone.
func httpFiles(o *httpOp, blob *store.Blob) iter.Seq2[layer.File, error] {
	perm := o.attrs.perm
	if perm == 0 {
		perm = 0o600
	}
	mtime := o.modTime()
	return func(yield func(layer.File, error) bool) {
		if !yield(layer.File{Entry: oci.Entry{Path: ".", Mode: syscall.S_IFDIR | 0o755, ModTime: mtime}}, nil) {
			return
		}
		yield(layer.File{
			Entry: oci.Entry{
				Path: o.filename(), Mode: syscall.S_IFREG | perm&0o7777, UID: o.attrs.uid, GID: o.attrs.gid,
				Size: blob.Size(), ModTime: mtime,
			},
			Open: func() (io.ReadCloser, error) { return io.NopCloser(blob.Reader()), nil },
		}, nil)
	}
}
