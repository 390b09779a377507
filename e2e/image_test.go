package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// denImages is the directory with the archives that `make image` leaves: ROLE.tar is den:ROLE.
var denImages = once(func() (string, error) {
	if _, err := exec.LookPath("busybox"); err != nil {
		return "", errMissing("busybox-static")
	}
	out := filepath.Join(env.dir, "image")
	cmd := exec.Command("sh", "../scripts/image.sh")
	cmd.Env = append(os.Environ(), "OUT="+out, "DEN="+env.den, "DEN_STORE="+out+"/store", "DEN_DATA_ROOT="+out+"/engine")
	_, err := output(cmd)
	return out, err
})

// largestImage is in bytes, uncompressed.
const largestImage = 70e6

func TestDensImagesAreSmallAndForBothPlatforms(t *testing.T) {
	t.Parallel()
	for role, programs := range map[string]int{"dind": 1, "kaniko": 1, "kaniko-debug": 2} {
		dir := t.TempDir()
		if _, err := output(exec.Command("tar", "-x", "-f", filepath.Join(denImages(t), role+".tar"), "-C", dir)); err != nil {
			t.Fatal(err)
		}
		var all manifest
		b, err := os.ReadFile(blobFile(dir, readIndex(t, dir).Manifests[0].Digest))
		if err == nil {
			err = json.Unmarshal(b, &all)
		}
		if err != nil {
			t.Fatal(err)
		}
		machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
		equal(t, role+"'s platforms", len(machines), len(all.Manifests))
		for _, d := range all.Manifests {
			m, c, _ := layoutImage(t, dir, d)
			if d.Platform == nil || d.Platform.OS != "linux" || d.Platform.Architecture != c.Architecture || c.OS != "linux" {
				t.Errorf("%s: platform %+v, and the configuration says %s/%s", role, d.Platform, c.OS, c.Architecture)
			}
			size, found := programsIn(t, dir, m)
			equal(t, role+"'s programs", programs, len(found))
			for name, machine := range found {
				if machine != machines[c.Architecture] {
					t.Errorf("%s for %s has %s for %s", role, c.Architecture, name, machine)
				}
			}
			if size > largestImage {
				t.Errorf("%s for %s has %d bytes", role, c.Architecture, size)
			}
		}
	}
}

func blobFile(layout, digest string) string {
	return filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1))
}

// programsIn is how large an image is unpacked, and what machines its programs are for.
func programsIn(t *testing.T, layout string, m manifest) (size int64, found map[string]elf.Machine) {
	t.Helper()
	found = map[string]elf.Machine{}
	for _, l := range m.Layers {
		f, err := os.Open(blobFile(layout, l.Digest))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			size += h.Size
			if h.Typeflag != tar.TypeReg || h.Mode&0o111 == 0 {
				continue
			}
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			program, err := elf.NewFile(bytes.NewReader(b))
			if err != nil {
				t.Fatalf("%s: %v", h.Name, err)
			}
			found[h.Name] = program.Machine
		}
	}
	return size, found
}
