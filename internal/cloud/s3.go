package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// S3 opens an object in an S3 bucket. $S3_ENDPOINT (or $AWS_ENDPOINT_URL_S3,
// $AWS_ENDPOINT_URL) is another server with that protocol,
// $S3_FORCE_PATH_STYLE=true puts the bucket's name into the path. Without
// credentials the object has to be public.
func (c *Client) S3(ctx context.Context, o Object) (io.ReadCloser, error) {
	r, err := c.s3(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("s3://%s/%s: %w", printable(o.Bucket), printable(o.Key), err)
	}
	return r, nil
}

func (c *Client) s3(ctx context.Context, o Object) (io.ReadCloser, error) {
	keys, err := c.awsKeys(ctx)
	if err != nil && !errors.Is(err, errNobody) {
		return nil, err
	}
	region := c.awsRegion()
	r, err := c.s3Get(ctx, o, keys, region)
	// A bucket of another region says which.
	var refused *statusError
	if errors.As(err, &refused) && c.s3Endpoint() == "" {
		there := refused.header.Get("X-Amz-Bucket-Region")
		if there != "" && there != region && !strings.ContainsFunc(there, notRegion) {
			return c.s3Get(ctx, o, keys, there)
		}
	}
	if keys.id == "" && errdefs.IsPermissionDenied(err) {
		err = fmt.Errorf("%w; no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a role", err)
	}
	return r, err
}

func notRegion(r rune) bool { return r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }

func (c *Client) s3Endpoint() string {
	return c.first("S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
}

func (c *Client) s3Get(ctx context.Context, o Object, keys awsKeys, region string) (io.ReadCloser, error) {
	u, err := c.s3URL(o, region)
	if err != nil {
		return nil, err
	}
	return c.object(ctx, func(ctx context.Context, at place) (*http.Request, error) {
		req, err := request(ctx, http.MethodGet, u.String(), "", "")
		if err != nil {
			return nil, err
		}
		req.URL = u // as it was escaped
		at.ask(req.Header, "Range")
		if keys.id != "" {
			sign(req, keys, region, "s3", emptyPayload, c.o.Now())
		}
		return req, nil
	})
}

func (c *Client) s3URL(o Object, region string) (*url.URL, error) {
	u := &url.URL{Scheme: "https", Host: "s3." + awsDomain(region)}
	// A certificate covers one label, so a bucket with a dot goes into the path.
	byPath := strings.EqualFold(c.o.Env("S3_FORCE_PATH_STYLE"), "true") || strings.Contains(o.Bucket, ".")
	if e := c.s3Endpoint(); e != "" {
		if !strings.Contains(e, "://") {
			e = "https://" + e
		}
		var err error
		if u, err = url.Parse(e); err != nil || u.Host == "" {
			return nil, fmt.Errorf("S3 endpoint %q: want a URL: %w", printable(e), errdefs.ErrInvalidArgument)
		}
		byPath = byPath || isLoopback(u.Hostname())
	}
	path := strings.TrimSuffix(u.Path, "/") + "/" + o.Key
	if byPath {
		path = strings.TrimSuffix(u.Path, "/") + "/" + o.Bucket + "/" + o.Key
	} else {
		u.Host = o.Bucket + "." + u.Host
	}
	u.Path, u.RawPath = path, awsEscape(path, false)
	return u, nil
}
