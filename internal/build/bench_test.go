package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"den/internal/durable"
	"den/internal/image"
	"den/internal/store"
)

// manyFiles makes a context of n small files with a Dockerfile that copies
// them.
func manyFiles(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	for i := range n {
		sub := filepath.Join(dir, "src", fmt.Sprint(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(fmt.Sprintf("file %d\n", i)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY src /src\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}

// solveOnce builds as a new process would: with a store that was just opened.
func solveOnce(b *testing.B, root, eng, dir string) {
	b.Helper()
	st, err := store.Open(context.Background(), root, store.Options{EngineDir: eng, Durability: durable.None})
	if err != nil {
		b.Fatal(err)
	}
	bd := New(Options{Store: st, Images: image.New(st, nil, image.Options{}), Runner: chooseRunner(st)})
	if _, err := bd.Solve(context.Background(), Request{Context: dir, LookupEnv: lookup(nil)}); err != nil {
		b.Fatal(err)
	}
	if err := st.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkCopy20000FilesUnchanged(b *testing.B) {
	dir, root, eng := manyFiles(b, 20_000), b.TempDir(), b.TempDir()
	solveOnce(b, root, eng, dir)
	for b.Loop() {
		solveOnce(b, root, eng, dir)
	}
}

func BenchmarkCopy20000FilesCold(b *testing.B) {
	dir := manyFiles(b, 20_000)
	for b.Loop() {
		b.StopTimer()
		root, eng := b.TempDir(), b.TempDir()
		b.StartTimer()
		solveOnce(b, root, eng, dir)
	}
}

func BenchmarkCopy20000FilesOneChanged(b *testing.B) {
	dir, root, eng := manyFiles(b, 20_000), b.TempDir(), b.TempDir()
	solveOnce(b, root, eng, dir)
	n := 0
	for b.Loop() {
		n++
		if err := os.WriteFile(filepath.Join(dir, "src/7/777"), []byte(fmt.Sprintln("changed", n)), 0o644); err != nil {
			b.Fatal(err)
		}
		solveOnce(b, root, eng, dir)
	}
}

// twentySteps is a context whose Dockerfile has twenty RUN steps on a shell.
func twentySteps(b *testing.B) string {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root: steps run in namespaces of their own")
	}
	dir := installShell(b, b.TempDir())
	text := "FROM scratch\nCOPY rootfs /\n"
	for i := range 20 {
		text += fmt.Sprintf("RUN echo %d > /%d\n", i, i)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}

func BenchmarkTwentySteps(b *testing.B) {
	dir := twentySteps(b)
	for b.Loop() {
		b.StopTimer()
		root, eng := b.TempDir(), b.TempDir()
		b.StartTimer()
		solveOnce(b, root, eng, dir)
	}
}

func BenchmarkTwentyStepsUnchanged(b *testing.B) {
	dir, root, eng := twentySteps(b), b.TempDir(), b.TempDir()
	solveOnce(b, root, eng, dir)
	for b.Loop() {
		solveOnce(b, root, eng, dir)
	}
}
