package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"den/internal/oci"
)

// expectBytes is the size from which an upload asks first whether it is
// welcome ("Expect: 100-continue"): a refusal in the middle of a body reaches
// us as a broken connection only.
const expectBytes = 8 << 20

// minChunk is as small as chunks get for a registry behind a proxy that limits
// bodies: nginx does at 1 MiB unless told otherwise.
const minChunk = 512 << 10

// MountBlob makes a blob of the repository from, on the same registry, appear
// in repo without a transfer. It reports false if the registry would not: then
// push it.
func (c *Client) MountBlob(ctx context.Context, repo, from string, d oci.Descriptor) (bool, error) {
	r, err := blobPlace(repo, d)
	if err != nil {
		return false, err
	}
	f, err := oci.ParseName(from)
	if err != nil {
		return false, err
	}
	if r.Domain != f.Domain || r.Path == f.Path {
		return false, nil
	}
	e, err := c.origin(ctx, r.Domain)
	if err != nil {
		return false, fmt.Errorf("mount blob %s: %w", d.Digest, err)
	}
	resp, err := e.do(ctx, call{
		method: http.MethodPost, path: r.Path + "/blobs/uploads/",
		query:  url.Values{"mount": {string(d.Digest)}, "from": {f.Path}},
		scopes: append(pushScopes(r.Path), pullScopes(f.Path)...),
		accept: []int{http.StatusCreated, http.StatusAccepted},
	})
	var refused *Error
	if errors.As(err, &refused) && refused.Status < 500 {
		return false, nil // not its strength, or we may not read there
	}
	if err != nil {
		return false, fmt.Errorf("mount blob %s: %w", d.Digest, err)
	}
	drain(resp)
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	// It opened an upload instead, which PushBlob goes on with.
	if loc, err := e.location(resp); err == nil {
		c.mu.Lock()
		c.opened[r.Name()+"@"+string(d.Digest)] = loc.String()
		c.mu.Unlock()
	}
	return false, nil
}

// PushBlob uploads a blob unless the repository has it. open returns its bytes
// from an offset on, and is called again where an upload is taken up. moved,
// unless nil, is told the offset reached, by one goroutine at a time; it goes
// back when the registry lost some.
func (c *Client) PushBlob(ctx context.Context, repo string, d oci.Descriptor, open func(offset int64) (io.ReadCloser, error), moved func(int64)) error {
	return c.ResumeBlob(ctx, repo, d, Session{}, open, moved)
}

// A Session is an upload that may outlive the process that began it. Only one
// process may go on with it at a time.
type Session struct {
	// At is where the upload of a process that died goes on; empty for a new one.
	At string
	// Note, unless nil, is told where the upload could go on from now on, and
	// "" when it is over.
	Note func(at string)
}

// ResumeBlob is PushBlob in a session that may have begun before. A registry
// that has lost it, or tells no offset, gets the blob from its beginning.
func (c *Client) ResumeBlob(ctx context.Context, repo string, d oci.Descriptor, s Session, open func(offset int64) (io.ReadCloser, error), moved func(int64)) error {
	r, err := blobPlace(repo, d)
	if err != nil {
		return err
	}
	if moved == nil {
		moved = func(int64) {}
	}
	if s.Note == nil {
		s.Note = func(string) {}
	}
	u := &upload{path: r.Path, d: d, open: open, moved: moved, note: s.Note}
	if s.At != "" {
		if u.at, err = url.Parse(s.At); err == nil {
			u.broke, u.resumed, u.foreign = true, true, true
		}
	}
	if err := c.pushBlob(ctx, r, u); err != nil {
		return fmt.Errorf("push blob %s to %s: %w", d.Digest, r.FamiliarName(), err)
	}
	return nil
}

func (c *Client) pushBlob(ctx context.Context, r oci.Reference, u *upload) error {
	e, err := c.origin(ctx, r.Domain)
	if err != nil {
		return err
	}
	release, err := acquire(ctx, c.uploads)
	if err != nil {
		return err
	}
	defer release()
	u.e, u.chunk, u.tries = e, e.s.o.ChunkBytes, retrier{s: e.s, tries: e.tries()}
	key := r.Name() + "@" + string(u.d.Digest)
	c.mu.Lock()
	loc, opened := c.opened[key] // a mount asked for it before: it is not there
	delete(c.opened, key)
	c.mu.Unlock()
	if opened && u.at == nil {
		u.at, _ = url.Parse(loc)
	}
	return u.run(ctx)
}

// An upload is one blob on its way to a registry (OCI distribution-spec,
// "Pushing blobs"). It starts as a single request. One that broke, or that was
// too large, goes on in chunks at the offset that the registry reports.
type upload struct {
	e     endpoint
	path  string
	d     oci.Descriptor
	open  func(int64) (io.ReadCloser, error)
	moved func(int64)
	note  func(at string)
	tries retrier

	at      *url.URL // the session; nil: none
	off     int64    // what the registry has of it
	best    int64    // the largest off at which tries started anew
	broke   bool     // at is to be asked for off
	chunked bool
	chunk   int64 // bytes of one
	least   int64 // that the registry wants it to be
	resumed bool  // pieces of several tries were put together
	foreign bool  // at is what another process left, and was not asked about yet
}

func (u *upload) run(ctx context.Context) error {
	for {
		err := u.advance(ctx)
		if err == nil {
			u.moved(u.d.Size)
			u.note("")
			return nil
		}
		if err = u.recover(ctx, err); err != nil {
			return u.e.advise(ctx, err, pushScopes(u.path))
		}
	}
}

// recover decides after a failure how to go on, and waits; or returns the
// final error.
func (u *upload) recover(ctx context.Context, err error) error {
	var refused *Error
	if !errors.As(err, &refused) {
		u.broke, u.chunked = true, true
		return u.tries.wait(ctx, err)
	}
	switch {
	case temporaryStatus(refused.Status):
		u.broke = true
		return u.tries.wait(ctx, err)
	case refused.Status == http.StatusRequestEntityTooLarge && u.shrink():
		u.at = nil
		return nil
	case refused.Status == http.StatusNotFound && u.at != nil,
		refused.Status == http.StatusRequestedRangeNotSatisfiable,
		refused.Code == "blob_upload_unknown", refused.Code == "blob_upload_invalid",
		refused.Code == "range_invalid",
		refused.Code == "digest_invalid" && u.resumed:
		// The session is lost, or what it holds is: begin anew.
		u.at, u.resumed = nil, false
		u.tries.retries++
		if u.tries.retries < u.tries.tries && ctx.Err() == nil {
			return nil
		}
	}
	return err
}

// shrink makes the requests smaller; it reports false if they are small enough
// that size cannot be what is wrong.
func (u *upload) shrink() bool {
	if !u.chunked && u.d.Size > u.chunk {
		u.chunked = true
		return true
	}
	u.chunked = true
	u.chunk = min(u.chunk, u.d.Size) / 2
	return u.chunk >= max(u.least, minChunk)
}

// advance takes the upload as far as it goes without a failure.
func (u *upload) advance(ctx context.Context) error {
	if u.at != nil && u.broke {
		if err := u.ask(ctx); err != nil {
			return err
		}
	}
	u.broke = false
	if u.at == nil {
		// Also if it was only the last answer that got lost.
		has, err := u.e.hasBlob(ctx, u.path, u.d, pushScopes(u.path), u.e.once)
		if err != nil || has {
			return err
		}
		if err := u.begin(ctx); err != nil {
			return err
		}
	}
	if u.off == 0 && !u.chunked {
		return u.put(ctx, u.d.Size)
	}
	for u.off < u.d.Size {
		if err := u.patch(ctx); err != nil {
			return err
		}
	}
	return u.put(ctx, 0)
}

// begin opens a session.
func (u *upload) begin(ctx context.Context) error {
	u.off = 0
	u.moved(0)
	resp, err := u.e.once(ctx, call{
		method: http.MethodPost, path: u.path + "/blobs/uploads/",
		scopes: pushScopes(u.path), accept: []int{http.StatusAccepted},
	})
	if err != nil {
		return err
	}
	drain(resp)
	u.least, _ = strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64)
	u.chunk = max(u.chunk, u.least)
	return u.goOn(resp)
}

// goOn takes the place of the next request from a response. One elsewhere is
// not noted: such a URL is a credential in itself.
func (u *upload) goOn(resp *http.Response) (err error) {
	if u.at, err = u.e.location(resp); err != nil {
		return err
	}
	if u.at.Host == u.e.host {
		u.note(u.at.String())
	}
	return nil
}

// ask finds out how much of the upload the registry has.
func (u *upload) ask(ctx context.Context) error {
	resp, err := u.e.once(ctx, call{
		method: http.MethodGet, url: u.at, scopes: pushScopes(u.path),
		accept: []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted},
	})
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) && !temporaryStatus(refused.Status) {
			u.at = nil // it does not know any more
			return nil
		}
		return err
	}
	drain(resp)
	off, ok := rangeEnd(resp.Header)
	nothing := u.foreign && off == 0 // then a new one saves the chunks
	u.foreign = false
	if !ok || off > u.d.Size || nothing {
		u.at = nil
		return nil
	}
	at := u.at
	if u.goOn(resp) != nil {
		u.at = at
	}
	u.off, u.resumed, u.chunked = off, off > 0, true
	u.moved(off)
	return nil
}

// rangeEnd is the number of bytes that a session holds: the Range header is
// "0-N" with the last of them, and "0-0" both for one byte and for none.
func rangeEnd(h http.Header) (int64, bool) {
	v := strings.TrimPrefix(h.Get("Range"), "bytes=")
	_, last, ok := strings.Cut(v, "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || n < 0 || n == math.MaxInt64 {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	return n + 1, true
}

// source is the call's body from u.off on.
func (u *upload) source(c *call, length int64) {
	start := u.off
	c.length = length
	c.body = func() (io.ReadCloser, error) { return u.open(start) }
	c.moved = func(sent int64) { u.moved(start + sent) }
	c.header.Set("Content-Type", "application/octet-stream")
	if length >= expectBytes {
		c.header.Set("Expect", "100-continue")
	}
}

// patch sends the next chunk.
func (u *upload) patch(ctx context.Context) error {
	n := min(u.chunk, u.d.Size-u.off)
	c := call{
		method: http.MethodPatch, url: u.at, header: http.Header{}, scopes: pushScopes(u.path),
		accept: []int{http.StatusAccepted, http.StatusNoContent, http.StatusCreated, http.StatusOK},
	}
	u.source(&c, n)
	c.header.Set("Content-Range", fmt.Sprintf("%d-%d", u.off, u.off+n-1))
	resp, err := u.e.once(ctx, c)
	if err != nil {
		return err
	}
	drain(resp)
	if err := u.goOn(resp); err != nil {
		return err
	}
	off, ok := rangeEnd(resp.Header)
	if !ok || n == 1 && off == u.off { // "0-0" is both one byte and none
		off = u.off + n
	}
	switch {
	case off > u.off+n:
		return &policyError{fmt.Sprintf("%s says that it has %d bytes, we sent %d", u.e.host, off, u.off+n)}
	case off < u.off+n:
		return fmt.Errorf("%s took %d bytes of a chunk of %d", u.e.host, off-u.off, n)
	}
	u.off = off
	if u.off-u.best >= minProgress {
		u.best = u.off
		u.tries.progress()
	}
	u.moved(u.off)
	return nil
}

// put completes the upload with the last n bytes.
func (u *upload) put(ctx context.Context, n int64) error {
	at := *u.at
	q := at.Query()
	q.Set("digest", string(u.d.Digest))
	at.RawQuery = q.Encode()
	c := call{
		method: http.MethodPut, url: &at, header: http.Header{}, scopes: pushScopes(u.path),
		accept: []int{http.StatusCreated, http.StatusNoContent, http.StatusOK, http.StatusAccepted},
	}
	u.source(&c, n)
	if n == 0 {
		c.body = func() (io.ReadCloser, error) { return http.NoBody, nil }
		c.moved = nil
	}
	resp, err := u.e.once(ctx, c)
	if err != nil {
		return err
	}
	drain(resp)
	if said := oci.Digest(resp.Header.Get(digestHeader)); said != "" && said != u.d.Digest {
		return fmt.Errorf("%s stored something else: %w", u.e.host, &oci.DigestError{Want: u.d.Digest, Got: said})
	}
	return nil
}

// location is the URL at which an upload goes on.
func (e endpoint) location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return nil, &policyError{fmt.Sprintf("%s names no place for the upload: Location is %.100q", e.host, resp.Header.Get("Location"))}
	}
	base := resp.Request.URL
	if u.Hostname() == base.Hostname() && u.Scheme == "http" && base.Scheme == "https" {
		// A registry that does not know of the TLS in front of it.
		u.Scheme, u.Host = base.Scheme, base.Host
	}
	return u, e.checkURL(u)
}
