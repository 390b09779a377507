package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"den/internal/oci"

	"github.com/containerd/errdefs"
)

const (
	maxTagPages     = 1000
	maxTags         = 100_000
	maxTagPageBytes = 4 << 20
)

// Tags lists the tags of a repository, in the registry's order. Nobody needs
// them all at once, so that there are not more than a hundred thousand.
func (c *Client) Tags(ctx context.Context, repo string) ([]string, error) {
	r, err := oci.ParseName(repo)
	if err != nil {
		return nil, err
	}
	var tags []string
	err = c.read(ctx, r.Domain, func(e endpoint) error {
		var err error
		tags, err = e.tags(ctx, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tags of %s: %w", r.FamiliarName(), err)
	}
	return tags, nil
}

// tags follows the pages of a list (OCI distribution-spec, "Listing Tags").
func (e endpoint) tags(ctx context.Context, r oci.Reference) ([]string, error) {
	var tags []string
	seen := map[string]bool{}
	query := url.Values{}
	for range maxTagPages {
		page, next, err := e.tagPage(ctx, r, query)
		if err != nil {
			return nil, err
		}
		before := len(tags)
		for _, t := range page {
			if _, err := oci.ParseReference(r.Name() + ":" + t); err != nil {
				return nil, &policyError{fmt.Sprintf("%s lists a tag that is none: %.100q", e.host, t)}
			}
			if !seen[t] {
				seen[t] = true
				tags = append(tags, t)
			}
		}
		if len(tags) > maxTags {
			return nil, fmt.Errorf("%s lists more than %d tags: %w", e.host, maxTags, oci.ErrTooLarge)
		}
		if next == nil {
			return tags, nil
		}
		if len(tags) == before {
			return nil, &policyError{fmt.Sprintf("%s lists tags without end: a page has nothing new", e.host)}
		}
		query = next
	}
	return nil, fmt.Errorf("%s lists tags on more than %d pages: %w", e.host, maxTagPages, oci.ErrTooLarge)
}

func (e endpoint) tagPage(ctx context.Context, r oci.Reference, query url.Values) ([]string, url.Values, error) {
	path := e.path(r.Path)
	resp, err := e.do(ctx, call{
		method: http.MethodGet, path: path + "/tags/list", query: query,
		scopes: pullScopes(path), accept: []int{http.StatusOK},
	})
	if err != nil {
		return nil, nil, err
	}
	next := nextPage(resp.Header)
	body, err := readAll(resp, maxTagPageBytes)
	if err != nil {
		return nil, nil, err
	}
	var page struct {
		Tags []string `json:"tags"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, nil, fmt.Errorf("%s: %w: %w", e.host, err, errdefs.ErrDataLoss)
	}
	return page.Tags, next, nil
}

// nextPage is the query of `<URL>; rel="next"` (RFC 8288). Only the query is
// taken: the next page is where this one was, whatever host the link names.
func nextPage(h http.Header) url.Values {
	for _, v := range h.Values("Link") {
		link, params, ok := strings.Cut(v, ">")
		if !ok || !strings.Contains(strings.ReplaceAll(params, " ", ""), `rel="next"`) {
			continue
		}
		u, err := url.Parse(strings.TrimPrefix(strings.TrimSpace(link), "<"))
		if err == nil && u.RawQuery != "" {
			return u.Query()
		}
	}
	return nil
}
