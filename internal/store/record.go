package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/oci"
)

// A Record names what it keeps, by diffID and digest, with data of its writer.
type Record struct {
	Layers []oci.Digest    `json:"layers,omitempty"`
	Blobs  []oci.Digest    `json:"blobs,omitempty"`
	Data   json.RawMessage `json:"data,omitempty"`
	// Scope is that of the cache key, which contains it (ScopedKey).
	Scope string `json:"scope,omitempty"`
	// Op says for humans what made it.
	Op string `json:"op,omitempty"`
	// CostNanos is how long it took, which the collector weighs.
	CostNanos int64     `json:"costNanos,omitempty"`
	Created   time.Time `json:"created,omitzero"`
}

func (r Record) check() error {
	for _, ds := range [][]oci.Digest{r.Layers, r.Blobs} {
		for _, d := range ds {
			if err := oci.CheckDigest(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// Record returns this store's build-cache record under key; the error is of
// class errdefs.ErrNotFound when there is none. What it names may be gone.
func (s *Store) Record(ctx context.Context, key oci.Digest) (*Record, error) {
	if err := oci.CheckDigest(key); err != nil {
		return nil, fmt.Errorf("record: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	path := s.recordPath(key)
	if s.suspect(recordRel(key)) {
		return nil, fmt.Errorf("record %s: %w", key, errdefs.ErrNotFound)
	}
	var r Record
	info, err := readJSON(path, &r)
	if err == nil && r.check() != nil {
		err = &badFileError{r.check()}
	}
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", key, notFoundIfBad(err))
	}
	s.touch(path, unix.NsecToTimespec(info.ModTime().UnixNano()))
	return &r, nil
}

// Records returns the build-cache records under key: this store's, then those
// of its bases. What they name may be gone; then the next may serve.
func (s *Store) Records(ctx context.Context, key oci.Digest) ([]*Record, error) {
	var found []*Record
	r, err := s.Record(ctx, key)
	if err == nil {
		found = append(found, r)
	} else if !errdefs.IsNotFound(err) {
		return nil, err
	}
	for _, b := range s.bases {
		if r, err := b.Record(ctx, key); err == nil {
			found = append(found, r)
		}
	}
	return found, nil
}

// PutRecord stores r under key and returns the record that is there then:
// the first one stays, unless replace says that it is of no use any more. The
// caller holds leases on all that r names.
func (s *Store) PutRecord(ctx context.Context, key oci.Digest, r Record, replace bool) (*Record, error) {
	if err := errors.Join(oci.CheckDigest(key), r.check()); err != nil {
		return nil, fmt.Errorf("put record: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("put record %s: %w", key, err)
	}
	if err := failpoint.Hit("store.record.write"); err != nil {
		return nil, err
	}
	rel := recordRel(key)
	for {
		err := s.writeFile(rel, data, replace)
		if err == nil {
			return &r, nil
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("put record %s: %w", key, err)
		}
		first, err := s.Record(ctx, key)
		if err == nil || !errdefs.IsNotFound(err) {
			return first, err
		}
		replace = true // it does not parse
	}
}

// A badFileError is a metadata file that can not be used. Such a file counts
// as absent.
type badFileError struct{ err error }

func (e *badFileError) Error() string { return e.err.Error() }
func (e *badFileError) Unwrap() error { return e.err }

// notFoundIfBad gives errors that mean a miss their class.
func notFoundIfBad(err error) error {
	_, bad := errors.AsType[*badFileError](err)
	if bad || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

// readJSON reads a metadata file. One that does not parse, as a power cut may
// leave it, is a badFileError.
func readJSON(path string, v any) (os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := readAll(f)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return nil, &badFileError{fmt.Errorf("%s: %w", path, err)}
	}
	return info, nil
}

// checksum guards memo files, which are not worth a marker of an epoch.
func checksum(data []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

func (s *Store) derivedPath(name string) string {
	h := hexSum(name)
	return s.path("derived", h[:2], h)
}

// Derived returns what PutDerived stored under name, or an error of class
// errdefs.ErrNotFound: a memo may be gone at any time.
func (s *Store) Derived(name string) ([]byte, error) {
	return orBase(context.Background(), s, func(s *Store) ([]byte, error) { return s.ownDerived(name) })
}

func (s *Store) ownDerived(name string) ([]byte, error) {
	data, err := s.readDerived(s.derivedPath(name))
	if err == nil && (len(data) < 4 || string(data[:4]) != string(checksum(data[4:]))) {
		err = &badFileError{errors.New("checksum does not match")}
	}
	if err != nil {
		return nil, fmt.Errorf("derived %.80q: %w", name, notFoundIfBad(err))
	}
	return data[4:], nil
}

func (s *Store) readDerived(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s.touchFile(f, path)
	return io.ReadAll(f)
}

// PutDerived stores data, which can be computed again, under name. The last
// writer wins.
func (s *Store) PutDerived(name string, data []byte) error {
	if err := s.putDerived(s.derivedPath(name), data); err != nil {
		return fmt.Errorf("put derived %.80q: %w", name, err)
	}
	return nil
}

func (s *Store) putDerived(path string, data []byte) error {
	f, err := s.newTmp(unix.LOCK_SH, createFile)
	if err != nil {
		return err
	}
	if err = failpoint.Hit("store.derived.write"); err == nil {
		_, err = f.Write(append(checksum(data), data...))
	}
	if err == nil {
		err = failpoint.Hit("store.derived.rename")
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.Rename(f.Name(), path)
		}
	}
	if err != nil {
		err = errors.Join(err, removeFile(f.Name()))
	}
	return errors.Join(err, f.Close())
}

// EachRecord calls fn with the key and the record of each build-cache record of this
// store, of one of the scopes, or of all if none is named.
func (s *Store) EachRecord(ctx context.Context, scopes []string, fn func(key oci.Digest, r Record) error) error {
	return s.shards(ctx, "cache", func(_, name string) error {
		hex, ok := strings.CutSuffix(name, ".json")
		if !ok || !isHex(hex) {
			return nil
		}
		key := oci.Digest("sha256:" + hex)
		if s.suspect(recordRel(key)) {
			return nil
		}
		var r Record
		_, err := readJSON(s.recordPath(key), &r) // to look is not to use it
		if err == nil {
			err = r.check()
		}
		if err != nil || len(scopes) > 0 && !slices.Contains(scopes, r.Scope) {
			return nil // gone meanwhile, or of no use
		}
		return fn(key, r)
	})
}
