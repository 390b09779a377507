package build

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// A silent is a server that accepts a request, or begins to answer it, and then says nothing.
type silent struct{ begins bool }

func (s silent) RoundTrip(r *http.Request) (*http.Response, error) {
	body := silentBody{r.Context()}
	if s.begins {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(io.MultiReader(strings.NewReader("FROM "), body)), Request: r}, nil
	}
	_, err := body.Read(nil)
	return nil, err
}

type silentBody struct{ ctx context.Context }

func (b silentBody) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func TestServerThatDoesNotSendTheDockerfileIsGivenUp(t *testing.T) {
	for name, s := range map[string]silent{"no answer": {}, "half an answer": {begins: true}} {
		t.Run(name, func(t *testing.T) {
			b := builder(t)
			b.o.Transport = s
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				in := &inputs{}
				err := b.fetchDockerfile(t.Context(), in, "http://example.com/Dockerfile")
				if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "did not send it within 2m0s") || time.Since(began) != fetchTimeout {
					t.Errorf("after %s: %v", time.Since(began), err)
				}
				for _, undo := range in.cleanup {
					if err := undo(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}
