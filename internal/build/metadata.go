package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"

	"den/internal/image"
	"den/internal/oci"
)

// respond describes images as buildx does: the keys are those of BuildKit's
// exporters. target is the manifest or index, nil where none was made; then
// the configuration's digest stands for it, as with docker's own store.
func respond(images []*image.Image, target *oci.Descriptor, names []string) *Response {
	out := &Response{Names: names, Metadata: map[string]any{}}
	if len(images) == 0 {
		return out
	}
	out.ImageID = images[0].ConfigDigest
	single := len(images) == 1
	if !single && target != nil {
		out.ImageID = target.Digest
	}
	if single {
		out.Metadata[exptypes.ExporterImageConfigDigestKey] = images[0].ConfigDigest
	}
	out.Metadata[exptypes.ExporterImageDigestKey] = out.ImageID
	if target != nil {
		out.Metadata[exptypes.ExporterImageDigestKey] = target.Digest
		out.Metadata[exptypes.ExporterImageDescriptorKey] = target
	}
	if len(names) > 0 {
		out.Metadata["image.name"] = strings.Join(names, ",")
	}
	return out
}

// writeFiles writes --iidfile and --metadata-file.
func writeFiles(r *Request, out *Response) error {
	var errs []error
	if r.IIDFile != "" {
		errs = append(errs, writeFile(r.IIDFile, []byte(out.ImageID)))
	}
	if r.MetadataFile != "" {
		raw, err := json.MarshalIndent(out.Metadata, "", "  ")
		if err == nil {
			err = writeFile(r.MetadataFile, raw)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeFile replaces a file whole: a reader sees the old one or the new one.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
