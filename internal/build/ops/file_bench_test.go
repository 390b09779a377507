package ops

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"den/internal/build/solver"
	"den/internal/store"
)

// manyFiles makes a context like W2's: 20,000 files, 123 MB, directories like
// those of node_modules. Their times are old enough to be believed.
func manyFiles(b testing.TB, files int) string {
	b.Helper()
	dir := b.TempDir()
	r := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte('a' + r.IntN(16))
	}
	for i := range files {
		p := filepath.Join(dir, "src", fmt.Sprintf("module%d/lib/part%d/file%d.js", i/160, i/8%20, i))
		if i%8 == 0 {
			check(b, os.MkdirAll(filepath.Dir(p), 0o755))
		}
		n := 200 + r.IntN(11800)
		check(b, os.WriteFile(p, append([]byte(p), data[:n]...), 0o644))
	}
	check(b, os.WriteFile(filepath.Join(dir, "src/zzz_last.txt"), []byte("0"), 0o644))
	return dir
}

// settled waits until files that were just written are believed.
func settled(b *testing.B) {
	b.Helper()
	time.Sleep(time.Duration(localRacyNanos))
	b.ReportAllocs()
}

func BenchmarkWalkOf20000Files(b *testing.B) {
	dir := manyFiles(b, 20000)
	for b.Loop() {
		_, err := walkLocal(b.Context(), dir, localFilter{}, nil)
		check(b, err)
	}
}

func BenchmarkUnchangedContextOf20000Files(b *testing.B) {
	dir := manyFiles(b, 20000)
	env := benchEnv(b)
	settled(b)
	_, err := openLocalTree(b.Context(), env, dir, localFilter{Follow: []string{"src"}})
	check(b, err)
	for b.Loop() {
		_, err := openLocalTree(b.Context(), env, dir, localFilter{Follow: []string{"src"}})
		check(b, err)
	}
}

func BenchmarkCopyOf20000Files(b *testing.B) {
	dir := manyFiles(b, 20000)
	for b.Loop() {
		b.StopTimer()
		env := benchEnv(b)
		b.StartTimer()
		copyOnce(b, env, dir)
	}
}

func BenchmarkCopyOf20000FilesWithOneChanged(b *testing.B) {
	dir := manyFiles(b, 20000)
	env := benchEnv(b)
	settled(b)
	copyOnce(b, env, dir)
	n := 0
	for b.Loop() {
		n++
		check(b, os.WriteFile(filepath.Join(dir, "src/zzz_last.txt"), fmt.Append(nil, n), 0o644))
		copyOnce(b, env, dir)
	}
}

func BenchmarkCopyOfOneGibibyte(b *testing.B) {
	dir := b.TempDir()
	f, err := os.Create(filepath.Join(dir, "big"))
	check(b, err)
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for range 1024 {
		_, err := f.Write(chunk)
		check(b, err)
	}
	check(b, f.Close())
	b.SetBytes(1 << 30)
	for b.Loop() {
		b.StopTimer()
		env := benchEnv(b)
		b.StartTimer()
		copyOnce(b, env, dir)
	}
}

func BenchmarkContentHashOfLayer(b *testing.B) {
	dir := manyFiles(b, 20000)
	env := benchEnv(b)
	ref := copyOnce(b, env, dir)
	for b.Loop() {
		fs, done, err := ref.FS(b.Context())
		check(b, err)
		_, err = contentOf(b.Context(), &contentFS{fs: fs}, []Selector{{Path: "/app"}})
		check(b, err)
		done()
	}
}

// copyOnce is COPY . /app of a context, from the walk to the published layer.
func copyOnce(b testing.TB, env *Env, dir string) *Ref {
	b.Helper()
	ctx := localRef(b, env, dir, nil)
	return runFileOne(b, env, []solver.Result{nil, ctx}, cp("/", "/app"))
}

func benchEnv(b testing.TB) *Env {
	b.Helper()
	st, err := store.Open(context.Background(), b.TempDir(), store.Options{EngineDir: b.TempDir(), UnsafeFS: true})
	check(b, err)
	b.Cleanup(func() { check(b, st.Close()) })
	return &Env{Store: st}
}
