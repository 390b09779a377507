package store

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"

	"den/internal/oci"
)

// unpackVersion is part of every layer's id. It changes when the same tar
// unpacks to another tree, so that old and new den ignore each other's layers.
const unpackVersion = "1"

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// An object is something immutable that the collector may remove: its kind
// and its path relative to the root.
type object struct {
	kind kind
	id   string // of a layer: class/id
}

type kind string

const (
	kindBlob  kind = "blob"
	kindLayer kind = "layer"
)

func blobObject(d oci.Digest) object { return object{kindBlob, d.Encoded()} }

func layerObject(class, id string) object { return object{kindLayer, class + "/" + id} }

// inClass reports whether o is a layer's tree of the class.
func (o object) inClass(class string) bool {
	return o.kind == kindLayer && strings.HasPrefix(o.id, class+"/")
}

// rel is where the object is, beneath the root.
func (o object) rel() string {
	if o.kind == kindBlob {
		return "blobs/sha256/" + o.id
	}
	class, id, _ := strings.Cut(o.id, "/")
	return "layers/" + class + "/" + id[:2] + "/" + id
}

// flag is the name of its flag in condemned/.
func (o object) flag() string { return string(o.kind) + "-" + strings.ReplaceAll(o.id, "/", "-") }

func (o object) String() string { return string(o.kind) + " " + o.id }

// LayerID is the name of the layer's tree in this store for this process's
// ownership class.
func (s *Store) LayerID(diffID oci.Digest) string { return layerID(s.class, diffID) }

func layerID(class string, diffID oci.Digest) string {
	return hexSum("den layer\x00" + string(diffID) + "\x00" + class + "\x00" + unpackVersion)
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (s *Store) recordPath(key oci.Digest) string { return s.path(recordRel(key)) }

func recordRel(key oci.Digest) string {
	hex := key.Encoded()
	return filepath.Join("cache", hex[:2], hex+".json")
}

// isHex reports whether name is a sha256 in hex, as objects are named.
func isHex(name string) bool {
	if len(name) != sha256.Size*2 {
		return false
	}
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
