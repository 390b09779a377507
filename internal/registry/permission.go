package registry

import (
	"context"
	"fmt"
	"net/http"

	"den/internal/oci"
)

// CheckPush finds out whether a push to a repository would be let in, by opening
// an upload and giving it up again. Errors are as for PushBlob.
func (c *Client) CheckPush(ctx context.Context, repo string) error {
	r, err := oci.ParseName(repo)
	if err != nil {
		return err
	}
	e, err := c.origin(ctx, r.Domain)
	if err != nil {
		return fmt.Errorf("push permission for %s: %w", r.FamiliarName(), err)
	}
	resp, err := e.do(ctx, call{
		method: http.MethodPost, path: r.Path + "/blobs/uploads/",
		scopes: pushScopes(r.Path), accept: []int{http.StatusAccepted, http.StatusCreated},
	})
	if err != nil {
		return fmt.Errorf("push permission for %s: %w", r.FamiliarName(), err)
	}
	drain(resp)
	at, err := e.location(resp)
	if err != nil {
		return nil // that it may be pushed to is known
	}
	// Registries forget uploads by themselves, and some cannot be told.
	resp, err = e.once(ctx, call{
		method: http.MethodDelete, url: at, scopes: pushScopes(r.Path),
		accept: []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted},
	})
	if err == nil {
		drain(resp)
	}
	return nil
}
