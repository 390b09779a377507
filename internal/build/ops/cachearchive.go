package ops

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/image"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// A build cache in one file is a tar, perhaps compressed, of these members:
//
//	den-cache.json               what this is, first
//	layers/<hex>.tar             uncompressed layers by diffID, before the records that name them
//	records/<hex>.json           build-cache records by key
//	cachemounts/<hex>.json       {"id": ...} of a cache mount, hex is the id's sha256
//	cachemounts/<hex>.tar        its tree, behind that
const (
	archiveHead   = "den-cache.json"
	archiveFormat = 1
	// maxArchiveJSON bounds the documents in an archive.
	maxArchiveJSON = 8 << 20
)

type archiveHeader struct {
	Format int `json:"format"`
}

type archiveMount struct {
	ID string `json:"id"`
}

// Exported counts what was written to an archive; Missing says for what was left
// out, why.
type Exported struct {
	Records, Layers, CacheMounts int
	Missing                      []string
}

// An Exporter writes what one store has cached to a file for another.
type Exporter struct {
	Store  *store.Store
	Images *image.Images
	// Scopes whose records are written; none is all.
	Scopes []string
	// Cache says to write records with their layers, Mounts to write cache mounts.
	Cache, Mounts bool
	// Recorded is as in Env.
	Recorded bool
}

// Write writes the archive. What is in use or lacks something is left out and named.
func (x Exporter) Write(ctx context.Context, w io.Writer) (Exported, error) {
	e := &export{Exporter: x, tw: tar.NewWriter(w), written: map[oci.Digest]error{}}
	err := e.document(archiveHead, archiveHeader{archiveFormat})
	if err == nil && x.Cache {
		err = e.records(ctx)
	}
	if err == nil && x.Mounts {
		err = e.cacheMounts(ctx)
	}
	if err == nil {
		err = e.tw.Close()
	}
	if err != nil {
		err = fmt.Errorf("export cache: %w", err)
	}
	return e.Exported, err
}

type export struct {
	Exporter
	Exported
	tw      *tar.Writer
	written map[oci.Digest]error // layers, and why not
}

func (e *export) member(name string, size int64) error {
	return e.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg, Format: tar.FormatPAX})
}

func (e *export) document(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = e.member(name, int64(len(data)))
	}
	if err == nil {
		_, err = e.tw.Write(data)
	}
	return err
}

// leave notes what is missing; an error is of another kind.
func (e *export) leave(what string, err error) error {
	if !errdefs.IsNotFound(err) {
		return err
	}
	e.Missing = append(e.Missing, fmt.Sprintf("%s: %v", what, err))
	return nil
}

func (e *export) records(ctx context.Context) error {
	return e.Store.EachRecord(ctx, e.Scopes, func(key oci.Digest, rec store.Record) error {
		err := e.layers(ctx, rec)
		if err == nil {
			err = e.document("records/"+key.Encoded()+".json", rec)
		}
		if err != nil {
			return e.leave(fmt.Sprintf("record %s (%.80s)", key, rec.Op), err)
		}
		e.Records++
		return nil
	})
}

// layers writes those of a record that are not written yet.
func (e *export) layers(ctx context.Context, rec store.Record) error {
	var data recordData
	if err := json.Unmarshal(rec.Data, &data); err != nil {
		return fmt.Errorf("of another version: %w: %w", err, errdefs.ErrNotFound)
	}
	for _, l := range slices.Concat(data.Outputs...) {
		err, known := e.written[l.DiffID]
		if !known {
			err = e.layer(ctx, l)
			e.written[l.DiffID] = err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *export) layer(ctx context.Context, l image.Layer) error {
	t, err := e.Images.LayerTar(ctx, l)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := e.member("layers/"+l.DiffID.Encoded()+".tar", t.SizeBytes); err != nil {
		return err
	}
	e.Layers++
	return t.Write(ctx, e.tw)
}

// walk yields a cache mount with the owners that its files should have.
func (e *export) walk(dir string) iter.Seq2[layer.File, error] {
	if e.Recorded {
		return layer.WalkRecorded(dir)
	}
	return layer.WalkPlain(dir)
}

func (e *export) cacheMounts(ctx context.Context) error {
	busy, err := e.Store.EachCacheMount(ctx, func(id, dir string) error {
		// Nobody else has it, so both times give the same.
		a, err := layer.WriteTar(ctx, io.Discard, e.walk(dir))
		if errdefs.IsInvalidArgument(err) { // a name or a file that no layer can have
			e.Missing = append(e.Missing, fmt.Sprintf("cache mount %.200s: %v", id, err))
			return nil
		}
		if err != nil {
			return err
		}
		name := "cachemounts/" + digest.FromString(id).Encoded()
		if err := e.document(name+".json", archiveMount{id}); err != nil {
			return err
		}
		if err := e.member(name+".tar", a.SizeBytes); err != nil {
			return err
		}
		e.CacheMounts++
		_, err = layer.WriteTar(ctx, e.tw, e.walk(dir))
		return err
	})
	for _, id := range busy {
		e.Missing = append(e.Missing, fmt.Sprintf("cache mount %.200s: a build uses it", id))
	}
	return err
}

// Imported says what became of an archive.
type Imported struct {
	// Records, Layers and CacheMounts that are here now.
	Records, Layers, CacheMounts int
	// Kept are cache mounts that were here already, and stay as they are.
	Kept []string
	// Refused says, for each member that is not what it claims, why; Missing for
	// records whose layers are not there.
	Refused, Missing []string
}

// An Importer takes over what an archive holds, which is not trusted: layers must give the
// diffIDs that they claim.
type Importer struct {
	Store  *store.Store
	Images *image.Images
	// Scopes whose records are believed. Whoever wrote the archive could claim one.
	Scopes []string
	// Mounts takes the trees of cache mounts, which cannot be verified.
	Mounts bool
	// InUserns and Recorded are as in Env.
	InUserns, Recorded bool
}

// Read reads an archive, compressed or not. An error is of this store, or says that
// the archive ends early or is none.
func (x Importer) Read(ctx context.Context, r io.Reader) (Imported, error) {
	m := &importing{Importer: x, records: promotion{Promotion: Promotion{Store: x.Store, Images: x.Images}, adopted: map[oci.Digest]adopted{}}}
	defer m.records.close()
	err := m.read(ctx, r)
	m.Layers, m.Records = len(m.records.adopted), m.records.Records
	m.Refused, m.Missing = m.records.Refused, m.records.Missing
	if err != nil {
		err = fmt.Errorf("import cache: %w", err)
	}
	return m.Imported, err
}

type importing struct {
	Importer
	Imported
	records promotion
	mount   struct{ name, id string } // the cache mount whose tree comes next
}

func (m *importing) read(ctx context.Context, r io.Reader) error {
	z, _, err := layer.Decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	tr := tar.NewReader(z)
	first := true
	for {
		h, err := tr.Next()
		if err == io.EOF && !first {
			return nil
		}
		if first && (err != nil || h.Name != archiveHead) {
			return fmt.Errorf("it does not begin with %s, so den store export did not write it: %w", archiveHead, errdefs.ErrInvalidArgument)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = m.member(ctx, h, tr, first)
		}
		if err != nil {
			return err
		}
		first = false
	}
}

func (m *importing) member(ctx context.Context, h *tar.Header, r io.Reader, first bool) error {
	if first {
		var head archiveHeader
		if err := readDocument(r, &head); err != nil {
			return err
		}
		if head.Format != archiveFormat {
			return fmt.Errorf("it has format %d, made by a newer den: %w", head.Format, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	folder, file, _ := strings.Cut(h.Name, "/")
	hex, kind, _ := strings.Cut(file, ".")
	d := oci.Digest("sha256:" + hex)
	if h.Typeflag != tar.TypeReg || oci.CheckDigest(d) != nil {
		return m.refuse(ctx, h.Name, fmt.Errorf("not a member that den knows: %w", errdefs.ErrInvalidArgument))
	}
	var err error
	switch folder + "." + kind {
	case "layers.tar":
		err = m.layer(ctx, d, r)
	case "records.json":
		err = m.record(ctx, d, r)
	case "cachemounts.json":
		err = m.mountID(hex, r)
	case "cachemounts.tar":
		err = m.cacheMount(ctx, hex, r)
	default:
		err = fmt.Errorf("not a member that den knows: %w", errdefs.ErrInvalidArgument)
	}
	return m.refuse(ctx, h.Name, err)
}

func (m *importing) refuse(ctx context.Context, what string, err error) error {
	return m.records.refusing(ctx, fmt.Sprintf("%.200s", what), func() error { return err })
}

func readDocument(r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxArchiveJSON+1))
	if err != nil {
		return err
	}
	if len(data) > maxArchiveJSON {
		return fmt.Errorf("document: %w", oci.ErrTooLarge)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("malformed: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (m *importing) layer(ctx context.Context, diffID oci.Digest, r io.Reader) error {
	if _, here := m.records.adopted[diffID]; here {
		return nil
	}
	t, err := m.Images.PutLayerTar(ctx, diffID, r)
	if err != nil {
		return err
	}
	m.records.adopted[diffID] = adopted{layer: image.Layer{DiffID: diffID, SizeBytes: t.Meta().SizeBytes}, tree: t}
	return nil
}

// record takes a record whose layers came before it.
func (m *importing) record(ctx context.Context, key oci.Digest, r io.Reader) error {
	var rec store.Record
	if err := readDocument(r, &rec); err != nil {
		return err
	}
	if !slices.Contains(m.Scopes, rec.Scope) {
		return nil // not asked for
	}
	return m.records.take(ctx, key, rec, func(_ context.Context, l image.Layer) (adopted, error) {
		a, ok := m.records.adopted[l.DiffID]
		if !ok {
			return a, fmt.Errorf("layer %.80s is not in the archive: %w", l.DiffID, errdefs.ErrNotFound)
		}
		return a, nil
	})
}

func (m *importing) mountID(hex string, r io.Reader) error {
	var a archiveMount
	if err := readDocument(r, &a); err != nil {
		return err
	}
	if digest.FromString(a.ID).Encoded() != hex {
		return fmt.Errorf("its id is another's: %w", errdefs.ErrInvalidArgument)
	}
	m.mount.name, m.mount.id = hex, a.ID
	return nil
}

func (m *importing) cacheMount(ctx context.Context, hex string, r io.Reader) error {
	if !m.Mounts {
		return nil
	}
	if m.mount.name != hex {
		return fmt.Errorf("no id comes before it: %w", errdefs.ErrInvalidArgument)
	}
	made, err := m.Store.PutCacheMount(ctx, m.mount.id, func(watch *store.Watch, dir string) error {
		_, err := layer.Unpack(watch.Context(), watch.Paced(r), dir, layer.UnpackOptions{InUserns: m.InUserns, Recorded: m.Recorded, Archive: true, Unnamed: true})
		return err
	})
	switch {
	case err != nil:
		return err
	case made:
		m.CacheMounts++
	default:
		m.Kept = append(m.Kept, m.mount.id)
	}
	return nil
}
