package kaniko

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"

	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// A Pusher takes images where they go. *image.Images is one.
type Pusher interface {
	PushBlobs(ctx context.Context, b *image.Blobs, names []string, o image.PushOptions) error
	ExportLayout(ctx context.Context, dir string, b *image.Blobs, names []string, f image.Format) error
	ExportDocker(ctx context.Context, w io.Writer, b *image.Blobs, names []string, f image.Format) error
}

// A Deliverer takes the images of one run where its options say.
type Deliverer struct {
	Options *Options
	Images  Pusher
	Log     *logrus.Logger
	Sink    progress.Sink
	// Transport puts digests to URLs; nil is http.DefaultTransport.
	Transport http.RoundTripper
	// Sleep waits before another try; nil means by the clock.
	Sleep func(context.Context, time.Duration) error

	digests, names, tagged, outputs bytes.Buffer
}

// Deliver writes an image's digest files, layout and tar, then pushes it, in
// kaniko's order.
func (d *Deliverer) Deliver(ctx context.Context, j Job, b *image.Blobs) error {
	o := d.Options
	if err := d.files(ctx, j, b.Target.Digest); err != nil {
		return err
	}
	if j.Main && o.OCILayoutPath != "" {
		if err := d.layout(ctx, b); err != nil {
			return err
		}
	}
	if j.Main && o.TarPath != "" {
		if err := d.tar(ctx, j, b); err != nil {
			return err
		}
	}
	if o.NoPush {
		d.Log.Info("Skipping push to container registry due to --no-push flag")
		return nil
	}
	for _, to := range j.Destinations {
		if err := d.push(ctx, to, b); err != nil {
			return err
		}
	}
	return d.builderOutput(j, b.Target.Digest)
}

// files writes the digest files: the main image's digest, and of each image that
// has destinations a line for each of them.
func (d *Deliverer) files(ctx context.Context, j Job, dgst oci.Digest) error {
	if j.Main {
		d.digests.WriteString(string(dgst))
	}
	for _, to := range j.Destinations {
		fmt.Fprintf(&d.names, "%s@%s\n", to.Repository.Name(), dgst)
		fmt.Fprintf(&d.tagged, "%s:%s@%s\n", to.Repository.Name(), to.TagStr(), dgst)
	}
	for _, f := range []struct {
		path, what string
		text       *bytes.Buffer
	}{
		{d.Options.DigestFile, "digest", &d.digests},
		{d.Options.NameDigestFile, "image name with digest", &d.names},
		{d.Options.TagDigestFile, "image name with image tag and digest", &d.tagged},
	} {
		if f.path == "" {
			continue
		}
		if err := d.write(ctx, f.path, f.text.Bytes()); err != nil {
			return fmt.Errorf("writing %s to file failed: %w", f.what, err)
		}
	}
	return nil
}

// write writes a file, or puts it to a URL, which may be a signed one of a bucket.
func (d *Deliverer) write(ctx context.Context, path string, data []byte) error {
	if strings.HasPrefix(path, "https://") {
		return d.put(ctx, path, data)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func (d *Deliverer) put(ctx context.Context, to string, data []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to, bytes.NewReader(data))
	if err != nil {
		return invalid("the URL is not one")
	}
	req.Header.Set("Content-Type", "text/plain")
	client := http.Client{Transport: d.Transport}
	resp, err := client.Do(req)
	if err != nil {
		var outer *url.Error // says the URL, which may be signed
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s says %s", req.URL.Host, resp.Status)
	}
	return nil
}

// layout writes a new OCI layout: its index has this image alone.
func (d *Deliverer) layout(ctx context.Context, b *image.Blobs) error {
	dir := d.Options.OCILayoutPath
	if err := os.Remove(filepath.Join(dir, "index.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.Images.ExportLayout(ctx, dir, b, nil, d.format())
}

func (d *Deliverer) format() image.Format { return image.Format{Sink: d.Sink} }

func (d *Deliverer) tar(ctx context.Context, j Job, b *image.Blobs) error {
	names := []string{unnamed}
	if len(j.Destinations) > 0 {
		names = nil
	}
	for _, to := range j.Destinations {
		names = append(names, to.Name())
	}
	path := d.Options.TarPath
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing tarball to file failed: %w", err)
	}
	err = errors.Join(d.Images.ExportDocker(ctx, tmp, b, names, d.format()), tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing tarball to file failed: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// push pushes to one destination, as often as --push-retry says, and waits a
// second, then two, four, as kaniko does.
func (d *Deliverer) push(ctx context.Context, to name.Tag, b *image.Blobs) error {
	pinned := to.Context().Digest(string(b.Target.Digest)).String()
	d.Log.Infof("Pushing image to %s", to)
	for try := 0; ; try++ {
		err := d.Images.PushBlobs(ctx, b, []string{to.Name()}, image.PushOptions{Sink: d.Sink})
		switch {
		case err == nil:
			d.Log.Infof("Pushed %s", pinned)
			return nil
		case d.Options.Registry.IgnoreImmutableTags && isImmutable(err):
			d.Log.Infof("Immutable tag error ignored for %s", pinned)
			return nil
		case try >= d.Options.Registry.PushRetry || ctx.Err() != nil:
			return fmt.Errorf("failed to push to destination %s: %w", to, err)
		}
		wait := time.Second << min(try, 6)
		d.Log.Warnf("Retrying operation after %s due to %v", wait, err)
		if err := d.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func (d *Deliverer) sleep(ctx context.Context, wait time.Duration) error {
	if d.Sleep != nil {
		return d.Sleep(ctx, wait)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// immutable are the registries' words for it; there is no code that they share.
var immutable = [...]string{
	"The repository has enabled tag immutability",                // Google Artifact Registry
	"cannot be overwritten because the tag is immutable",         // Amazon ECR
	"configured as immutable", "immutable tag", "is immutable, ", // Harbor, Quay, GitLab
}

func isImmutable(err error) bool {
	for _, text := range immutable {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// builderOutput writes what Google Cloud Build and Skaffold read.
func (d *Deliverer) builderOutput(j Job, dgst oci.Digest) error {
	dir := d.Options.Env("BUILDER_OUTPUT")
	if dir == "" {
		return nil
	}
	for _, to := range j.Destinations {
		line, err := json.Marshal(struct {
			Name   string `json:"name"`
			Digest string `json:"digest"`
		}{to.String(), string(dgst)})
		if err != nil {
			return err
		}
		d.outputs.Write(append(line, '\n'))
	}
	return os.WriteFile(filepath.Join(dir, "images"), d.outputs.Bytes(), 0o644)
}
