package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A workload is a context, and the parts that are measured one after another.
type workload struct {
	name  string
	image string // the base that is there before the clock starts
	parts []part
	// files that the image has to have in the end.
	files []string
}

// A part is one build, after change.
type part struct {
	name   string
	change func(dir string) error
}

const smallFiles = 20_000

func workloads() []workload {
	cold, warm := part{name: "cold"}, part{name: "unchanged"}
	return []workload{
		{name: "W1", image: "debian", parts: []part{cold, warm}, files: []string{"f1", "f20"}},
		{name: "W2", image: "debian", parts: []part{cold, warm, {"one changed", touch("src/last.txt")}}, files: []string{"count"}},
		{name: "W3", image: "debian", parts: []part{cold}, files: []string{"sum"}},
		{name: "W4", image: "golang", parts: []part{cold, warm, {"one changed", goVersion}}, files: []string{"app"}},
		{name: "run", image: "debian", parts: []part{cold}},
	}
}

func touch(name string) func(string) error {
	return func(dir string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(time.Now().String()), 0o644)
	}
}

func goVersion(dir string) error {
	return os.WriteFile(filepath.Join(dir, "version.go"), fmt.Appendf(nil, "package main\n\nconst version = %q\n", time.Now()), 0o644)
}

// contexts generates what the workloads read.
func (b *bench) contexts() error {
	var runs strings.Builder
	for i := range 20 {
		fmt.Fprintf(&runs, "RUN echo %d > /f%d\n", i+1, i+1)
	}
	from := "FROM " + b.registry
	for name, text := range map[string]string{
		"W1": from + "/debian\n" + runs.String(),
		"W2": from + "/debian\nCOPY src /app\nRUN find /app -type f | wc -l > /count\n",
		"W3": from + "/debian\nCOPY big /big\nRUN sha256sum /big > /sum\n",
		"W4": from + "/golang AS build\nENV PATH=/usr/local/go/bin:/usr/bin:/bin GOCACHE=/gocache GOTOOLCHAIN=local CGO_ENABLED=0 GOPROXY=off HOME=/root\n" +
			"WORKDIR /src\nCOPY *.go go.mod ./\nRUN --mount=type=cache,target=/gocache go build -trimpath -o /out/app .\nFROM scratch\nCOPY --from=build /out/app /app\n",
	} {
		if err := os.MkdirAll(b.context(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.context(name), "Dockerfile"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := smallTree(filepath.Join(b.context("W2"), "src")); err != nil {
		return err
	}
	if err := bigFile(filepath.Join(b.context("W3"), "big")); err != nil {
		return err
	}
	w4 := b.context("W4")
	program := "package main\n\nimport (\n\t\"crypto/sha256\"\n\t\"encoding/json\"\n\t\"fmt\"\n\t\"text/template\"\n)\n\n" +
		"func main() {\n\tb, _ := json.Marshal(version)\n\tfmt.Println(template.HTMLEscapeString(string(b)), sha256.Sum256(b))\n}\n"
	if err := os.WriteFile(filepath.Join(w4, "main.go"), []byte(program), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w4, "go.mod"), []byte("module example.test/app\n\ngo 1.24\n"), 0o644); err != nil {
		return err
	}
	return goVersion(w4)
}

// smallTree copies the Go tree's files, again and again, until there are enough.
func smallTree(dir string) error {
	n := 0
	for round := 0; n < smallFiles-1; round++ {
		top := filepath.Join(goRoot(), "src")
		err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || n >= smallFiles-1 {
				return err
			}
			rel, err := filepath.Rel(top, p)
			if err != nil {
				return err
			}
			body, err := os.ReadFile(p)
			if err != nil || len(body) > 256<<10 {
				return err
			}
			to := filepath.Join(dir, fmt.Sprint(round), rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			n++
			return os.WriteFile(to, body, 0o644)
		})
		if err != nil {
			return err
		}
	}
	return touch("last.txt")(dir)
}

// bigFile is 1 GiB that does not compress to nothing.
func bigFile(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	seed := uint64(1)
	for range 1 << 10 {
		for i := range chunk {
			seed = seed*6364136223846793005 + 1442695040888963407
			chunk[i] = byte(seed >> 56)
		}
		copy(chunk[len(chunk)/2:], bytes.Repeat([]byte("den "), len(chunk)/8))
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	return f.Close()
}
