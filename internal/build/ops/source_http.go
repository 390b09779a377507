package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source/util/pathutil"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
)

// An httpOp is one file from a web server. Its key is the content, which is
// why an unpinned file is asked for in each build; a server that gives entity
// tags answers that without sending it again.
type httpOp struct {
	env   *Env
	v     *llb.Vertex
	attrs httpAttrs

	found *httpFound // after CacheMap
}

type httpAttrs struct {
	url        string
	checksum   oci.Digest
	filename   string
	perm       uint32
	uid, gid   uint32
	authSecret string
	headers    []httpHeader
}

// An httpHeader is a request header that the definition adds. The field names
// are part of BuildKit's key.
type httpHeader struct {
	Name  string
	Value string
}

// httpFound is what the server's answer said of the file.
type httpFound struct {
	Digest       oci.Digest `json:"digest"`
	ETag         string     `json:"etag,omitempty"`
	Disposition  string     `json:"disposition,omitempty"`
	LastModified string     `json:"lastModified,omitempty"`
}

func newHTTPOp(env *Env, v *llb.Vertex, id string) (solver.Op, error) {
	a, err := parseHTTPAttrs(id, v.Op.GetSource().GetAttrs())
	if err != nil {
		return nil, fmt.Errorf("source %.200q: %w", redact(id), err)
	}
	return &httpOp{env: env, v: v, attrs: a}, nil
}

func parseHTTPAttrs(id string, attrs map[string]string) (httpAttrs, error) {
	a := httpAttrs{url: id}
	u, err := url.Parse(id)
	if err != nil || u.Host == "" {
		return a, fmt.Errorf("not a URL: %w", errdefs.ErrInvalidArgument)
	}
	for k, val := range attrs {
		var err error
		switch k {
		case pb.AttrHTTPChecksum:
			a.checksum = oci.Digest(val)
			err = oci.CheckDigest(a.checksum)
		case pb.AttrHTTPFilename:
			a.filename = val
		case pb.AttrHTTPPerm:
			a.perm, err = parseUint32(val)
		case pb.AttrHTTPUID:
			a.uid, err = parseUint32(val)
		case pb.AttrHTTPGID:
			a.gid, err = parseUint32(val)
		case pb.AttrHTTPAuthHeaderSecret:
			a.authSecret = val
		case pb.AttrHTTPSignatureVerify, pb.AttrHTTPSignatureVerifyPubKey:
			err = unsupported("signature verification")
		default:
			name, ok := strings.CutPrefix(k, pb.AttrHTTPHeaderPrefix)
			if !ok {
				return a, fmt.Errorf("attribute %q: %w", k, errdefs.ErrNotImplemented)
			}
			// Other headers are dropped in silence, as BuildKit does.
			if name = http.CanonicalHeaderKey(name); name == "Accept" || name == "User-Agent" {
				a.headers = append(a.headers, httpHeader{name, val})
			}
		}
		if err != nil {
			return a, fmt.Errorf("attribute %s: %w: %w", k, err, errdefs.ErrInvalidArgument)
		}
	}
	slices.SortFunc(a.headers, func(x, y httpHeader) int { return cmp.Compare(x.Name, y.Name) })
	return a, nil
}

func parseUint32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	return uint32(n), err
}

// CacheMap learns the content's digest: from the definition, from an entity tag
// that the server still gives, or by downloading it.
func (o *httpOp) CacheMap(ctx context.Context, sink progress.Sink) (*solver.CacheMap, error) {
	if o.attrs.checksum != "" {
		o.found = &httpFound{Digest: o.attrs.checksum}
	} else if err := o.find(ctx, sink); err != nil {
		return nil, err
	}
	key, err := o.key()
	if err != nil {
		return nil, err
	}
	return &solver.CacheMap{Digest: sourceKey(string(key))}, nil
}

func (o *httpOp) key() (oci.Digest, error) {
	return jsonDigest(struct {
		Filename         string
		Perm, UID, GID   int
		Checksum         oci.Digest
		LastModTime      string       `json:",omitempty"`
		AuthHeaderSecret string       `json:",omitempty"`
		Header           []httpHeader `json:",omitempty"`
	}{
		o.filename(), int(o.attrs.perm), int(o.attrs.uid), int(o.attrs.gid),
		o.found.Digest, o.modTimeKey(), o.attrs.authSecret, o.attrs.headers,
	})
}

func (o *httpOp) modTimeKey() string {
	if t, err := http.ParseTime(o.found.LastModified); err == nil {
		return t.Format(http.TimeFormat)
	}
	return ""
}

// filename is what the file is called in the result.
func (o *httpOp) filename() string {
	if o.attrs.filename != "" {
		return pathutil.SafeFileName(o.attrs.filename)
	}
	if name := dispositionName(o.found.Disposition); name != "" {
		return pathutil.SafeFileName(name)
	}
	if u, err := url.Parse(o.attrs.url); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" {
			return pathutil.SafeFileName(base)
		}
	}
	return pathutil.SafeFileName("")
}

// Exec makes a layer of the file alone.
func (o *httpOp) Exec(ctx context.Context, _ []solver.Result, sink progress.Sink) (_ []solver.Result, err error) {
	blob, err := o.content(ctx, sink)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	r, err := o.env.build(ctx, httpFiles(o, blob), o.v.Digest)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", redact(o.attrs.url), err)
	}
	return []solver.Result{r}, nil
}

// content gets the bytes that the key promises: from the store, where CacheMap
// may just have put them, or once more from the server.
func (o *httpOp) content(ctx context.Context, sink progress.Sink) (*store.Blob, error) {
	blob, err := o.env.Store.Blob(ctx, o.found.Digest)
	if err == nil || !errdefs.IsNotFound(err) {
		return blob, err
	}
	f := &httpFetch{op: o, sink: sink}
	blob, err = o.env.Store.Ingest(ctx, store.Ingest{
		Digest: o.found.Digest, SizeBytes: -1, Moved: f.moved,
		Fetch: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			resp, err := f.get(ctx, offset)
			if err != nil {
				return nil, err
			}
			return resp.Body, nil
		},
	})
	f.end()
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", redact(o.attrs.url), err)
	}
	return blob, nil
}

// modTime is the server's time of the file, or the epoch, so that the layer of
// the same content is the same.
func (o *httpOp) modTime() time.Time {
	if t, err := http.ParseTime(o.found.LastModified); err == nil {
		return t
	}
	return time.Unix(0, 0)
}

// redact hides a password in a URL.
func redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Redacted()
}
