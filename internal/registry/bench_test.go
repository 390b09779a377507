package registry_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"den/internal/registry"
)

// BenchmarkBlob downloads 64 MiB from a registry in this process.
func BenchmarkBlob(b *testing.B) {
	data := randomBytes(b, 64<<20)
	host := serve(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	c, err := registry.New(registry.Options{})
	if err != nil {
		b.Fatal(err)
	}
	d := descriptor(data)
	b.SetBytes(d.Size)
	buf := make([]byte, 256<<10)
	for b.Loop() {
		r, err := c.Blob(b.Context(), host+"/app", d, 0)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil || n != d.Size {
			b.Fatal(n, err)
		}
		r.Close()
	}
}

// BenchmarkPush uploads 64 MiB to a registry in this process.
func BenchmarkPush(b *testing.B) {
	data := randomBytes(b, 64<<20)
	host := serve(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case http.MethodPost:
			w.Header().Set("Location", "/v2/app/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusCreated)
		}
	}))
	c, err := registry.New(registry.Options{})
	if err != nil {
		b.Fatal(err)
	}
	d := descriptor(data)
	b.SetBytes(d.Size)
	for b.Loop() {
		if err := c.PushBlob(b.Context(), host+"/app", d, opener(data), nil); err != nil {
			b.Fatal(err)
		}
	}
}
