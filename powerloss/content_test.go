package powerloss

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"den/internal/store"
)

// What everything holds follows from its name, so that a reader who knows
// nothing else can tell whether it is whole.

func random(seed string) *rand.Rand { return rand.New(rand.NewChaCha8(sha256.Sum256([]byte(seed)))) }

// text is up to most bytes, few more often than many.
func text(seed string, most int) []byte {
	r := random(seed)
	b := make([]byte, r.IntN(1+r.IntN(most)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// A mark is what records, references and layers carry to say what they are.
type mark struct {
	Seed    string
	Version int
}

func markOf(data json.RawMessage) (m mark, err error) { return m, json.Unmarshal(data, &m) }

func (m mark) json() json.RawMessage {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // a string and a number
	}
	return data
}

func layerID(seed string) digest.Digest   { return digest.FromString("layer " + seed) }
func recordKey(seed string) digest.Digest { return digest.FromString("record " + seed) }

// tree is the content of a layer: "" is a directory, "->x" a symbolic link.
func tree(seed string) map[string][]byte {
	r := random("tree " + seed)
	files := map[string][]byte{"d": nil, "d/e": nil, "d/link": []byte("->../f0")}
	for i := range 2 + r.IntN(8) {
		name := []string{"", "d/", "d/e/"}[r.IntN(3)] + fmt.Sprint("f", i)
		files[name] = append([]byte("="), text(seed+name, 40_000)...)
	}
	return files
}

// plant makes the tree of seed in dir. Half of the time somebody syncs one of
// the files meanwhile, as dpkg does.
func plant(dir, seed string) error {
	files := tree(seed)
	synced := random("sync " + seed).IntN(2 * len(files))
	for i, name := range slices.Sorted(maps.Keys(files)) {
		path, data := filepath.Join(dir, name), files[name]
		var err error
		switch {
		case data == nil:
			err = os.Mkdir(path, 0o755)
		case data[0] == '-':
			err = os.Symlink(string(data[2:]), path)
		default:
			err = writeFile(path, data[1:], i == synced)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, data []byte, sync bool) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// checkTree says how dir differs from what plant made.
func checkTree(dir, seed string) error {
	files := tree(seed)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := files[name]
		if !ok {
			return fmt.Errorf("%s: should not be there", name)
		}
		delete(files, name)
		switch {
		case e.IsDir() != (want == nil):
			return fmt.Errorf("%s: is a %s", name, e.Type())
		case want == nil:
		case want[0] == '-':
			to, err := os.Readlink(path)
			if err != nil || to != string(want[2:]) {
				return fmt.Errorf("%s: links to %q (%v)", name, to, err)
			}
		default:
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, want[1:]) {
				return fmt.Errorf("%s: torn, %d of %d bytes (%v)", name, len(got), len(want)-1, err)
			}
		}
		return nil
	})
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("%d files are missing", len(files))
	}
	return err
}

func layerRel(s *store.Store, seed string) string {
	id := s.LayerID(layerID(seed))
	return filepath.Join("layers", s.Class(), id[:2], id)
}

func blobRel(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

func recordRel(seed string) string {
	hex := recordKey(seed).Encoded()
	return filepath.Join("cache", hex[:2], hex+".json")
}

func refRel(s *store.Store, name string) string {
	return filepath.Join("engines", s.EngineID(), "refs", digest.FromString(name).Encoded()+".json")
}
