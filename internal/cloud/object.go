package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
)

// tries is how often a download that broke is taken up without having got on.
const tries = 4

// A maker makes the request for an object, or for the rest of it.
type maker func(ctx context.Context, at place) (*http.Request, error)

// A place is how far a download has got, and of which version of the object.
type place struct {
	offset int64
	etag   string
}

// ask adds to a request what asks for the rest.
func (p place) ask(h http.Header, rangeHeader string) {
	if p.offset > 0 {
		h.Set(rangeHeader, "bytes="+strconv.FormatInt(p.offset, 10)+"-")
		h.Set("If-Match", p.etag)
	}
}

// object opens an object whose download is taken up where it broke, as long as it is
// still the same object.
func (c *Client) object(ctx context.Context, make maker) (io.ReadCloser, error) {
	d := &download{c: c, ctx: ctx, make: make}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d, nil
}

// A download reads one object by as many requests as it takes.
type download struct {
	c    *Client
	ctx  context.Context //nolint:containedctx // a reader has no other way to be told
	make maker

	body   io.ReadCloser
	at     place
	failed int // times since it last got on
}

// open asks for what is missing.
func (d *download) open() error {
	req, err := d.make(d.ctx, d.at)
	if err != nil {
		return err
	}
	body, resp, err := d.c.exchange(req)
	if err != nil {
		return err
	}
	if d.at.offset == 0 {
		d.body, d.at.etag = body, resp.Header.Get("ETag")
		return nil
	}
	var from int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from != d.at.offset || resp.StatusCode != http.StatusPartialContent {
		return errors.Join(fmt.Errorf("%s does not go on where it broke off: %w", req.URL.Host, errdefs.ErrUnavailable), body.Close())
	}
	d.body = body
	return nil
}

func (d *download) Read(p []byte) (int, error) {
	for {
		n, err := d.body.Read(p)
		d.at.offset += int64(n)
		if n > 0 {
			d.failed = 0
			if !errors.Is(err, io.EOF) {
				err = nil // what broke breaks again
			}
			return n, err
		}
		if err == nil || errors.Is(err, io.EOF) || d.ctx.Err() != nil {
			return n, err
		}
		if err := d.again(err); err != nil {
			return 0, err
		}
	}
}

// again takes the download up, or returns why it cannot go on.
func (d *download) again(broken error) error {
	for {
		if d.failed++; d.failed >= tries || d.at.etag == "" {
			return broken
		}
		if err := d.c.wait(d.ctx, time.Second<<(d.failed-1)); err != nil {
			return err
		}
		if err := d.body.Close(); err != nil && d.ctx.Err() != nil {
			return err
		}
		err := d.open()
		var refused *statusError
		if errors.As(err, &refused) && refused.status < 500 {
			return fmt.Errorf("the object changed while it was read: %w", err)
		}
		if err == nil || d.ctx.Err() != nil {
			return err
		}
		broken = err
	}
}

func (d *download) Close() error { return d.body.Close() }

// wait lets some time pass.
func (c *Client) wait(ctx context.Context, how time.Duration) error {
	t := time.NewTimer(how)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
