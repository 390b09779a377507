package store

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

type Store struct{}
type Durability string
type Options struct {
	EngineDir  string
	Durability Durability
	UnsafeFS   bool
	Notice     func(string)
}

func Open(ctx context.Context, root string, o Options) (*Store, error) {
	return nil, errdefs.ErrNotImplemented
}
func DefaultRoot() string         { return "" }
func (s *Store) Close() error     { return nil }
func (s *Store) Root() string     { return "" }
func (s *Store) Class() string    { return "" }
func (s *Store) EngineID() string { return "" }

type Blob struct{}

func (s *Store) Blob(ctx context.Context, d oci.Digest) (*Blob, error) {
	return nil, errdefs.ErrNotImplemented
}
func (b *Blob) Digest() oci.Digest                      { return "" }
func (b *Blob) Size() int64                             { return 0 }
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return 0, io.EOF }
func (b *Blob) Reader() io.Reader                       { return nil }
func (b *Blob) Close() error                            { return nil }

type Ingest struct {
	Digest    oci.Digest
	SizeBytes int64
	Fetch     func(ctx context.Context, offset int64) (io.ReadCloser, error)
	Tee       io.Writer
	Moved     func(n int64)
}

func (s *Store) Ingest(ctx context.Context, in Ingest) (*Blob, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) PutBlob(ctx context.Context, r io.Reader) (*Blob, error) {
	return nil, errdefs.ErrNotImplemented
}

type LayerMeta struct {
	DiffID    oci.Digest
	SizeBytes int64
	TreeBytes int64
	Entries   int
	Over      []oci.Digest
	Extra     json.RawMessage
}
type Layer struct{}

func (s *Store) LayerID(diffID oci.Digest) string { return "" }
func (s *Store) Layer(ctx context.Context, diffID oci.Digest) (*Layer, error) {
	return nil, errdefs.ErrNotImplemented
}
func (l *Layer) DiffID() oci.Digest { return "" }
func (l *Layer) Meta() LayerMeta    { return LayerMeta{} }
func (l *Layer) Dirs() []string     { return nil }
func (l *Layer) Hold() []*os.File   { return nil }
func (l *Layer) Close() error       { return nil }

type Draft struct{}

func (s *Store) NewDraft(ctx context.Context) (*Draft, error) { return nil, errdefs.ErrNotImplemented }
func (d *Draft) FS() string                                   { return "" }
func (d *Draft) Work() string                                 { return "" }
func (d *Draft) Publish(ctx context.Context, m LayerMeta) (*Layer, error) {
	return nil, errdefs.ErrNotImplemented
}
func (d *Draft) Close() error { return nil }

type Record struct {
	Layers    []oci.Digest    `json:"layers,omitempty"`
	Blobs     []oci.Digest    `json:"blobs,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
	Op        string          `json:"op,omitempty"`
	CostNanos int64           `json:"costNanos,omitempty"`
	Created   time.Time       `json:"created,omitzero"`
}

func (s *Store) Record(ctx context.Context, key oci.Digest) (*Record, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) PutRecord(ctx context.Context, key oci.Digest, r Record, replace bool) (*Record, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) Derived(name string) ([]byte, error)       { return nil, errdefs.ErrNotImplemented }
func (s *Store) PutDerived(name string, data []byte) error { return errdefs.ErrNotImplemented }

type Work struct{}

func (s *Store) Work(ctx context.Context, kind, key string, waiting func()) (*Work, error) {
	return nil, errdefs.ErrNotImplemented
}
func (w *Work) Duplicate() bool { return false }
func (w *Work) Bump()           {}
func (w *Work) Done()           {}

type Ref struct {
	Name string `json:"name"`
	Record
}

func (s *Store) Ref(ctx context.Context, name string) (*Ref, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) SetRef(ctx context.Context, r Ref) error          { return errdefs.ErrNotImplemented }
func (s *Store) DeleteRef(ctx context.Context, name string) error { return errdefs.ErrNotImplemented }
func (s *Store) Refs(ctx context.Context) ([]Ref, error)          { return nil, errdefs.ErrNotImplemented }
func (s *Store) PulledRef(ctx context.Context, name string) (*Ref, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) SetPulledRef(ctx context.Context, r Ref) error { return errdefs.ErrNotImplemented }
func (s *Store) DeletePulledRef(ctx context.Context, name string) error {
	return errdefs.ErrNotImplemented
}
func (s *Store) PulledRefs(ctx context.Context) ([]Ref, error) { return nil, errdefs.ErrNotImplemented }

type CacheMountRequest struct {
	ID      string
	Sharing string
	Init    func(dir string) error
}
type CacheMount struct{}

func (s *Store) CacheMounts(ctx context.Context, reqs []CacheMountRequest, waiting func()) ([]*CacheMount, error) {
	return nil, errdefs.ErrNotImplemented
}
func (c *CacheMount) Dir() string      { return "" }
func (c *CacheMount) Fresh() bool      { return false }
func (c *CacheMount) Hold() []*os.File { return nil }
func (c *CacheMount) Close() error     { return nil }

type ContainerDir struct{}

func (s *Store) NewContainer(ctx context.Context, cid string) (*ContainerDir, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) OpenContainer(cid string) (*ContainerDir, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Store) Containers() ([]string, error)        { return nil, errdefs.ErrNotImplemented }
func (c *ContainerDir) ID() string                    { return "" }
func (c *ContainerDir) Path() string                  { return "" }
func (c *ContainerDir) TryLock() (bool, error)        { return false, nil }
func (c *ContainerDir) Hold() *os.File                { return nil }
func (c *ContainerDir) SetRoots(r Record) error       { return nil }
func (c *ContainerDir) Remove() error                 { return nil }
func (c *ContainerDir) Close() error                  { return nil }
func (s *Store) NameContainer(name, cid string) error { return errdefs.ErrNotImplemented }
func (s *Store) UnnameContainer(name string) error    { return errdefs.ErrNotImplemented }
func (s *Store) ContainerByName(nameOrIDPrefix string) (cid string, err error) {
	return "", errdefs.ErrNotImplemented
}

func (s *Store) Volume(ctx context.Context, name string, create bool) (dir string, hold *os.File, fresh bool, err error) {
	return "", nil, false, errdefs.ErrNotImplemented
}
func (s *Store) Volumes() ([]string, error)     { return nil, errdefs.ErrNotImplemented }
func (s *Store) RemoveVolume(name string) error { return errdefs.ErrNotImplemented }

type PruneOptions struct {
	KeepBytes int64
	Until     time.Duration
	All       bool
	Filters   map[string][]string
}
type Usage struct {
	Blobs, Layers, Records, CacheMounts, Volumes, Containers UsageOf
}
type UsageOf struct {
	Count, Active           int
	Bytes, ReclaimableBytes int64
}

func (s *Store) Usage(ctx context.Context) (Usage, error) { return Usage{}, errdefs.ErrNotImplemented }
func (s *Store) Prune(ctx context.Context, o PruneOptions) (freedBytes int64, err error) {
	return 0, errdefs.ErrNotImplemented
}

type Problem struct{ Kind, ID, What string }
type Report struct {
	Objects   int
	Problems  []Problem
	Dangling  []string
	Leftovers []string
}

func (s *Store) Verify(ctx context.Context, deep bool) (Report, error) {
	return Report{}, errdefs.ErrNotImplemented
}
