package engine

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"den/internal/durable"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
)

// requestFile and imageFile, beside a resident container's record, are what it was asked
// for, and the image as it was then.
const (
	requestFile = "request.json"
	imageFile   = "image.json"
)

func writeKept(dir *store.ContainerDir, name string, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir.Path(), name), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("container %s: %s: %w", dir.ID(), name, err)
	}
	return nil
}

func readKept(dir *store.ContainerDir, name string, v any) error {
	b, err := readBounded(filepath.Join(dir.Path(), name), maxRecordBytes)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("container %s: %s: %w", dir.ID(), name, err)
	}
	return nil
}

func readRequest(dir *store.ContainerDir) (*CreateRequest, error) {
	r := &CreateRequest{}
	return r, readKept(dir, requestFile, r)
}

func readImage(dir *store.ContainerDir) (*image.Image, *oci.Image, error) {
	img := &image.Image{}
	if err := readKept(dir, imageFile, img); err != nil {
		return nil, nil, err
	}
	config, err := img.Parse()
	return img, config, err
}
