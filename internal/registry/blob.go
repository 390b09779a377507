package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"den/internal/oci"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// minProgress is how much has to arrive for the count of tries to start anew:
// a registry that drips a byte per connection is not one that works.
const minProgress = 64 << 10

// Blob reads the bytes of a blob from offset on. repo is a repository's name,
// canonical ("docker.io/library/debian") or familiar. The reader takes up a
// broken connection by itself, goes from a mirror to the origin where it must,
// and yields exactly d.Size-offset bytes or an error; it does not verify the
// digest. It holds one of Options.MaxDownloads slots until it is closed, ends
// with ctx, and is for one goroutine.
func (c *Client) Blob(ctx context.Context, repo string, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := blobPlace(repo, d)
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset > d.Size {
		return nil, fmt.Errorf("blob %s: offset %d of %d: %w", d.Digest, offset, d.Size, errdefs.ErrOutOfRange)
	}
	endpoints, err := c.readers(ctx, r.Domain)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	release, err := acquire(ctx, c.downloads)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	b := &blobReader{ctx: ctx, d: d, path: r.Path, off: offset, endpoints: endpoints, release: release}
	b.use(endpoints[0])
	if offset == d.Size {
		return b, nil
	}
	// Connect now, so that a blob that is not there is told here.
	if err := b.connect(); err != nil {
		release()
		return nil, err
	}
	return b, nil
}

// blobPlace checks what names a blob.
func blobPlace(repo string, d oci.Descriptor) (oci.Reference, error) {
	r, err := oci.ParseName(repo)
	if err != nil {
		return r, err
	}
	return r, oci.CheckDescriptor(d)
}

// SmallBlob returns a whole blob of at most limit bytes, verified: an image's
// configuration.
func (c *Client) SmallBlob(ctx context.Context, repo string, d oci.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("blob %s: %w: %d bytes, more than %d", d.Digest, oci.ErrTooLarge, d.Size, limit)
	}
	r, err := c.Blob(ctx, repo, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != d.Digest {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, &oci.DigestError{Want: d.Digest, Got: got})
	}
	return data, nil
}

// HasBlob reports whether the repository has the blob.
func (c *Client) HasBlob(ctx context.Context, repo string, d oci.Descriptor) (bool, error) {
	r, err := blobPlace(repo, d)
	if err != nil {
		return false, err
	}
	e, err := c.origin(ctx, r.Domain)
	if err != nil {
		return false, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	has, err := e.hasBlob(ctx, r.Path, d, pullScopes(r.Path), e.do)
	if err != nil {
		return false, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return has, nil
}

// hasBlob makes its request by send, which is e.do or e.once.
func (e endpoint) hasBlob(ctx context.Context, path string, d oci.Descriptor, scopes []string,
	send func(context.Context, call) (*http.Response, error)) (bool, error) {
	resp, err := send(ctx, call{
		method: http.MethodHead, path: path + "/blobs/" + string(d.Digest),
		scopes: scopes, accept: []int{http.StatusOK},
	})
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
			return false, nil
		}
		return false, err
	}
	resp.Body.Close()
	// A registry that has it in another length has something else.
	return resp.ContentLength < 0 || resp.ContentLength == d.Size, nil
}

// A blobReader is a download that survives its connections. It keeps ctx
// because io.Reader has no place for it.
type blobReader struct {
	ctx       context.Context
	d         oci.Descriptor
	path      string
	off       int64
	endpoints []endpoint // the current one first
	tries     retrier
	mark      int64 // offset at which tries started anew

	body    io.ReadCloser // nil: not connected
	whole   bool          // do not ask for ranges
	counted bool          // the response said its length, so there cannot be more
	err     error         // final
	release func()
}

func (b *blobReader) use(e endpoint) {
	b.tries = retrier{s: e.s, tries: e.tries()}
	b.mark, b.whole = b.off, false
}

func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.off == b.d.Size {
			b.err = b.atEnd()
			break
		}
		if b.body == nil {
			if b.err = b.connect(); b.err != nil {
				break
			}
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.d.Size-b.off)])
		b.off += int64(n)
		if b.off-b.mark >= minProgress {
			b.tries.progress()
			b.mark = b.off
		}
		if err != nil && b.off < b.d.Size {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			b.disconnect()
			b.err = b.failed(err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// atEnd is io.EOF unless the registry has more to say than it should.
func (b *blobReader) atEnd() error {
	if b.body == nil || b.counted {
		return io.EOF
	}
	var one [1]byte
	if n, _ := io.ReadFull(b.body, one[:]); n > 0 {
		return b.wrap(&LengthError{Host: b.endpoints[0].host, Want: b.d.Size, Got: b.d.Size, More: true})
	}
	return io.EOF
}

// failed returns nil after a wait if the download is to go on, here or at the
// next endpoint, else the final error.
func (b *blobReader) failed(err error) error {
	e := b.endpoints[0]
	err = b.tries.wait(b.ctx, err)
	if err == nil {
		return nil
	}
	err = e.advise(b.ctx, err, pullScopes(e.path(b.path)))
	if b.ctx.Err() == nil {
		e.failed(err)
		if len(b.endpoints) > 1 {
			b.endpoints = b.endpoints[1:]
			b.use(b.endpoints[0])
			return nil
		}
	}
	return b.wrap(err)
}

func (b *blobReader) wrap(err error) error {
	if b.off > 0 && b.off < b.d.Size {
		return fmt.Errorf("blob %s: at byte %d of %d: %w", b.d.Digest, b.off, b.d.Size, err)
	}
	return fmt.Errorf("blob %s: %w", b.d.Digest, err)
}

// connect requests the bytes from b.off on, at each endpoint as often as it
// takes.
func (b *blobReader) connect() error {
	for {
		err := b.request()
		if err == nil {
			return nil
		}
		if err := b.failed(err); err != nil {
			return err
		}
	}
}

func (b *blobReader) request() error {
	e := b.endpoints[0]
	path := e.path(b.path)
	get := call{
		method: http.MethodGet, path: path + "/blobs/" + string(b.d.Digest),
		scopes: pullScopes(path), accept: []int{http.StatusOK},
	}
	if b.off > 0 && !b.whole {
		get.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.off, b.d.Size-1)}}
		get.accept = []int{http.StatusOK, http.StatusPartialContent}
	}
	resp, err := e.once(b.ctx, get)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusRequestedRangeNotSatisfiable && !b.whole {
		b.whole = true // ranges are an extra that not every registry has
		return b.request()
	}
	if err != nil {
		return err
	}
	start := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		if start, err = rangeStart(resp.Header.Get("Content-Range")); err == nil && start != b.off {
			err = fmt.Errorf("it starts at %d", start)
		}
		if err != nil {
			resp.Body.Close()
			return &policyError{fmt.Sprintf("%s answers a request for the bytes from %d on wrongly: %v", e.host, b.off, err)}
		}
	}
	b.counted = resp.ContentLength >= 0
	if b.counted && start+resp.ContentLength != b.d.Size {
		resp.Body.Close()
		return &LengthError{Host: e.host, Want: b.d.Size, Got: start + resp.ContentLength}
	}
	b.body = resp.Body
	// A registry without ranges starts from the beginning: pass that over.
	if _, err := io.CopyN(io.Discard, b.body, b.off-start); err != nil {
		b.disconnect()
		return err
	}
	return nil
}

// rangeStart is the first byte of "bytes 5-9/10".
func rangeStart(s string) (int64, error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	first, _, dash := strings.Cut(rest, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	if !ok || !dash || err != nil || n < 0 {
		return 0, fmt.Errorf("Content-Range is %.40q", s)
	}
	return n, nil
}

func (b *blobReader) disconnect() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

// Close ends the download and gives its slot back.
func (b *blobReader) Close() error {
	b.disconnect()
	if b.err == nil {
		b.err = errors.New("read of a closed blob")
	}
	b.release()
	return nil
}
