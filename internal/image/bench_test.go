package image

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// manyFiles is a layer of n files of sizeBytes each.
func manyFiles(b *testing.B, layer, n, sizeBytes int) []byte {
	b.Helper()
	body := noise(sizeBytes/2) + string(bytes.Repeat([]byte("x"), sizeBytes/2))
	var members []tarMember
	for i := range n {
		members = append(members, tarMember{name: fmt.Sprintf("f%d-%d", layer, i), body: body})
	}
	return makeTar(b, members...)
}

// layersOfMiB is an image of four layers with 32 MiB in all.
func layersOfMiB(b *testing.B) *foreign {
	b.Helper()
	var tars [][]byte
	for i := range 4 {
		tars = append(tars, manyFiles(b, i, 256, 32<<10))
	}
	return newForeign(b, "amd64", tars...)
}

func BenchmarkPull(b *testing.B) {
	s := newServer(b)
	f := layersOfMiB(b)
	s.put(b, "app:1", f)
	b.SetBytes(32 << 20)
	for b.Loop() {
		b.StopTimer()
		m := newBenchAt(b, s, b.TempDir(), Options{})
		b.StartTimer()
		if _, err := m.Pull(b.Context(), m.name("app:1"), PullOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResolveLocal(b *testing.B) {
	m := newBench(b)
	m.reg.put(b, "app:1", newForeign(b, "amd64", makeTar(b, tarMember{name: "a"})))
	for b.Loop() {
		if _, err := m.Resolve(b.Context(), m.name("app:1"), ResolveOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompress(b *testing.B) {
	for _, compression := range []string{"gzip", "zstd"} {
		b.Run(compression, func(b *testing.B) {
			m := newBench(b)
			m.reg.put(b, "app:1", layersOfMiB(b))
			img := must(m.Resolve(b.Context(), m.name("app:1"), ResolveOptions{}))(b)
			tree := must(m.tree(b.Context(), img.Layers[0], TreeOptions{}))(b)
			defer tree.Close()
			src := tarSource{tree: tree}
			b.SetBytes(tree.Meta().SizeBytes)
			for b.Loop() {
				if _, err := src.writeCompressed(b.Context(), io.Discard, Format{Compression: compression}, func(int64) {}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
