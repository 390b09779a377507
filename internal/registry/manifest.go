package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"den/internal/oci"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const digestHeader = "Docker-Content-Digest"

// acceptManifests are the documents that den reads. Registries convert or
// refuse what is not on the list.
func acceptManifests() http.Header {
	return http.Header{"Accept": {strings.Join([]string{
		oci.MediaTypeIndex, oci.MediaTypeManifest,
		oci.MediaTypeDockerIndex, oci.MediaTypeDockerManifest,
	}, ", ")}}
}

// Resolve returns the descriptor of the manifest or index that ref names, by a
// HEAD request where the registry answers it fully: Docker Hub does not count
// those. ref may be familiar ("debian") or canonical.
func (c *Client) Resolve(ctx context.Context, ref string) (oci.Descriptor, error) {
	r, err := oci.ParseReference(ref)
	if err != nil {
		return oci.Descriptor{}, err
	}
	var d oci.Descriptor
	err = c.read(ctx, r.Domain, func(e endpoint) error {
		var err error
		d, err = e.head(ctx, r)
		if errors.Is(err, errdefs.ErrNotImplemented) {
			d, _, err = e.manifest(ctx, r)
		}
		return err
	})
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("resolve %s: %w", r.Familiar(), err)
	}
	return d, nil
}

// head asks for a manifest's descriptor; errdefs.ErrNotImplemented means that
// the answer is not enough and the manifest has to be fetched.
func (e endpoint) head(ctx context.Context, r oci.Reference) (oci.Descriptor, error) {
	path := e.path(r.Path)
	resp, err := e.do(ctx, call{
		method: http.MethodHead, path: path + "/manifests/" + r.Object(),
		header: acceptManifests(), scopes: pullScopes(path), accept: []int{http.StatusOK},
	})
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) && refused.Message == "" &&
			refused.Status != http.StatusNotFound && !temporaryStatus(refused.Status) {
			// A HEAD's refusal has no words: fetch it for a better one.
			return oci.Descriptor{}, errdefs.ErrNotImplemented
		}
		return oci.Descriptor{}, err
	}
	resp.Body.Close()
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	d := oci.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: r.Digest, Size: resp.ContentLength}
	if d.Digest == "" {
		d.Digest = oci.Digest(resp.Header.Get(digestHeader))
	}
	known := oci.IsIndex(d.MediaType) || oci.IsManifest(d.MediaType)
	if !known || d.Size <= 0 || d.Size > oci.MaxManifestBytes || oci.CheckDigest(d.Digest) != nil {
		return oci.Descriptor{}, errdefs.ErrNotImplemented
	}
	return d, nil
}

// Manifest returns the manifest or index that ref names and its descriptor.
// The bytes are verified against the digest, at most oci.MaxManifestBytes, and
// of a media type that oci.ParseManifest or oci.ParseIndex reads.
func (c *Client) Manifest(ctx context.Context, ref string) (oci.Descriptor, []byte, error) {
	r, err := oci.ParseReference(ref)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	var (
		d    oci.Descriptor
		body []byte
	)
	err = c.read(ctx, r.Domain, func(e endpoint) error {
		var err error
		d, body, err = e.manifest(ctx, r)
		return err
	})
	if err != nil {
		return oci.Descriptor{}, nil, fmt.Errorf("manifest of %s: %w", r.Familiar(), err)
	}
	return d, body, nil
}

func (e endpoint) manifest(ctx context.Context, r oci.Reference) (oci.Descriptor, []byte, error) {
	path := e.path(r.Path)
	get := call{
		method: http.MethodGet, path: path + "/manifests/" + r.Object(),
		header: acceptManifests(), scopes: pullScopes(path), accept: []int{http.StatusOK},
	}
	tries := retrier{s: e.s, tries: e.tries()}
	for {
		resp, err := e.do(ctx, get)
		if err != nil {
			return oci.Descriptor{}, nil, err
		}
		body, err := readAll(resp, oci.MaxManifestBytes)
		if err == nil {
			d, err := describe(resp, r, body)
			return d, body, err
		}
		if err := tries.wait(ctx, err); err != nil {
			return oci.Descriptor{}, nil, e.advise(ctx, err, get.scopes)
		}
	}
}

// readAll reads a response of at most limit bytes and closes it.
func readAll(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	tooLarge := &policyError{fmt.Sprintf("%s sends more than %d bytes", resp.Request.URL.Host, limit)}
	if resp.ContentLength > limit {
		return nil, tooLarge
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, tooLarge
	}
	return body, nil
}

// describe verifies a manifest that came as the answer to r.
func describe(resp *http.Response, r oci.Reference, body []byte) (oci.Descriptor, error) {
	host := resp.Request.URL.Host
	got := digest.FromBytes(body)
	if r.Digest != "" && got != r.Digest {
		return oci.Descriptor{}, fmt.Errorf("%s sends another manifest: %w", host, &oci.DigestError{Want: r.Digest, Got: got})
	}
	// A tag is what the registry says it is, but not two things at once.
	if said := oci.Digest(resp.Header.Get(digestHeader)); r.Digest == "" && said != "" && oci.CheckDigest(said) == nil && said != got {
		return oci.Descriptor{}, fmt.Errorf("%s sends a damaged manifest: %w", host, &oci.DigestError{Want: said, Got: got})
	}
	mediaType, err := oci.DetectMediaType(body, resp.Header.Get("Content-Type"))
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("manifest from %s: %w", host, err)
	}
	return oci.Descriptor{MediaType: mediaType, Digest: got, Size: int64(len(body))}, nil
}

// PushManifest uploads a manifest or index under ref's tag or digest and
// returns its descriptor. All that it names has to be there before.
func (c *Client) PushManifest(ctx context.Context, ref, mediaType string, body []byte) (oci.Descriptor, error) {
	r, err := oci.ParseReference(ref)
	if err != nil {
		return oci.Descriptor{}, err
	}
	d := oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := c.pushManifest(ctx, r, d, body); err != nil {
		return oci.Descriptor{}, fmt.Errorf("push manifest %s: %w", r.Familiar(), err)
	}
	return d, nil
}

func (c *Client) pushManifest(ctx context.Context, r oci.Reference, d oci.Descriptor, body []byte) error {
	if d.Size > oci.MaxManifestBytes {
		return fmt.Errorf("%w: %d bytes, registries take %d: %w", oci.ErrTooLarge, d.Size, oci.MaxManifestBytes, errdefs.ErrInvalidArgument)
	}
	object := r.Tag
	if object == "" {
		object = string(r.Digest)
	}
	if r.Digest != "" && r.Digest != d.Digest {
		return fmt.Errorf("%w: %w", &oci.DigestError{Want: r.Digest, Got: d.Digest}, errdefs.ErrInvalidArgument)
	}
	e, err := c.origin(ctx, r.Domain)
	if err != nil {
		return err
	}
	resp, err := e.do(ctx, call{
		method: http.MethodPut, path: r.Path + "/manifests/" + object,
		header: http.Header{"Content-Type": {d.MediaType}}, scopes: pushScopes(r.Path),
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted},
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
		length: d.Size,
	})
	if err != nil {
		return err
	}
	drain(resp)
	if said := oci.Digest(resp.Header.Get(digestHeader)); said != "" && said != d.Digest {
		return fmt.Errorf("%s stored something else: %w", e.host, &oci.DigestError{Want: d.Digest, Got: said})
	}
	return nil
}
