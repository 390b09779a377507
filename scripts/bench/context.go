package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A source makes the context of the workloads that name it.
type source struct {
	name string
	make func(*bench) error
}

func contexts() []source {
	return []source{
		{"W1", contextSteps}, {"W2", contextSmall}, {"W3", contextBig}, {"W4", contextGo},
		{"W5", contextApt}, {"W9", contextFour}, {"W11", contextData},
	}
}

// write makes the Dockerfile of build i: a stage "result", which is measured,
// and a stage "check" with the files that the workload is checked by.
func (b *bench) write(name string, i int, result string) error {
	all := workloads()
	w := all[0]
	for _, each := range all {
		if each.context == name && each.check != nil {
			w = each
		}
	}
	text := result
	from := "result"
	if w.checkRun != "" {
		from = "ran"
		text += "FROM result AS ran\nRUN " + w.checkRun + "\n"
	}
	text += "FROM scratch AS check\n"
	for _, f := range w.checkFiles {
		text += "COPY --from=" + from + " /" + f + " /" + f + "\n"
	}
	if err := os.MkdirAll(b.context(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(b.dockerfile(w, i), []byte(text), 0o644)
}

func contextSteps(b *bench) error {
	var runs strings.Builder
	for i := range runSteps {
		fmt.Fprintf(&runs, "RUN echo %d > /f%d\n", i+1, i+1)
	}
	return b.write("W1", 0, "FROM "+b.registry+"/debian AS result\n"+runs.String())
}

// contextSmall copies the Go tree's files, again and again, until there are enough.
func contextSmall(b *bench) error {
	if err := b.write("W2", 0, "FROM "+b.registry+"/debian AS result\nCOPY src /app\nRUN find /app -type f | wc -l > /count\n"); err != nil {
		return err
	}
	dir := filepath.Join(b.context("W2"), "src")
	n := 0
	for round := 0; n < smallFiles-1; round++ {
		top := filepath.Join(b.golang, "src")
		err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || n >= smallFiles-1 {
				return err
			}
			rel, err := filepath.Rel(top, p)
			if err != nil {
				return err
			}
			_, copied, err := copyFile(p, filepath.Join(dir, fmt.Sprint(round), rel), 256<<10)
			if copied {
				n++
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return touch("last.txt")(dir)
}

// copyFile copies a file unless it is larger than limit.
func copyFile(from, to string, limit int64) (size int64, copied bool, err error) {
	fi, err := os.Stat(from)
	if err != nil || fi.Size() > limit {
		return 0, false, err
	}
	body, err := os.ReadFile(from)
	if err != nil {
		return 0, false, err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return 0, false, err
	}
	return int64(len(body)), true, os.WriteFile(to, body, 0o644)
}

func contextBig(b *bench) error {
	if err := b.write("W3", 0, "FROM "+b.registry+"/debian AS result\nCOPY big /big\nRUN sha256sum /big > /sum\n"); err != nil {
		return err
	}
	return bigFile(filepath.Join(b.context("W3"), "big"), 1<<10)
}

// bigFile is so many MiB, of which half do not compress.
func bigFile(file string, mebibytes int) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	seed := uint64(1)
	for range mebibytes {
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

func contextGo(b *bench) error {
	// The toolchain as an image.
	image := filepath.Join(b.dir, "golang.Dockerfile")
	if err := os.WriteFile(image, []byte("FROM "+b.registry+"/debian\nCOPY . /usr/local/go\n"), 0o644); err != nil {
		return err
	}
	if err := b.setupDen("build", "-q", "-f", image, "-t", b.registry+"/golang", b.golang); err != nil {
		return err
	}
	if err := b.setupDen("push", "-q", b.registry+"/golang"); err != nil {
		return err
	}
	err := b.write("W4", 0, "FROM "+b.registry+"/golang AS build\nENV PATH=/usr/local/go/bin:/usr/bin:/bin HOME=/root GOCACHE=/gocache "+strings.Join(goEnv, " ")+"\n"+
		"WORKDIR /src\nCOPY *.go go.mod ./\nRUN --mount=type=cache,target=/gocache go build -trimpath -o /out/app .\nFROM scratch AS result\nCOPY --from=build /out/app /app\n")
	if err != nil {
		return err
	}
	dir := b.context("W4")
	program := "package main\n\nimport (\n\t\"crypto/sha256\"\n\t\"encoding/json\"\n\t\"encoding/xml\"\n\t\"flag\"\n\t\"os\"\n\t\"text/template\"\n)\n\n" +
		"func main() {\n\tflag.Parse()\n\tj, _ := json.Marshal(version)\n\tx, _ := xml.Marshal(version)\n\t_ = sha256.Sum256(append(j, x...))\n" +
		"\tif err := template.Must(template.New(\"\").Parse(\"{{.}}\\n\")).Execute(os.Stdout, version); err != nil {\n\t\tos.Exit(1)\n\t}\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.test/app\n\ngo 1.24\n"), 0o644); err != nil {
		return err
	}
	return goVersion(dir)
}

func contextApt(b *bench) error {
	return b.write("W5", 0, "FROM "+b.registry+"/debian AS result\nRUN "+b.aptInstall()+"\n")
}

func contextFour(b *bench) error {
	for n := range 4 {
		text := "FROM " + b.registry + "/debian AS result\n"
		for i := range sharedCopy {
			text += fmt.Sprintf("RUN cp -a /usr/share /s%d\n", i+1)
		}
		for i := range 3 {
			text += fmt.Sprintf("RUN echo %d-%d > /u%d\n", n, i+1, i+1)
		}
		if err := b.write("W9", n, text); err != nil {
			return err
		}
	}
	return nil
}

const (
	dataLayers = 9
	dataBytes  = 533e6
)

// contextData pushes the image of W11: nine layers of the machine's own files
// over the base, in one of them a file of 100 MiB.
func contextData(b *bench) error {
	dir := b.context("W11")
	if err := os.MkdirAll(filepath.Join(dir, "all", "0"), 0o755); err != nil {
		return err
	}
	if err := bigFile(filepath.Join(dir, "all/0/big"), 100); err != nil {
		return err
	}
	total := int64(100 << 20)
	layer := 0
	for _, top := range []string{b.golang, "/usr/share", "/usr/lib", "/usr/bin"} {
		err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if total >= dataBytes {
				return fs.SkipAll
			}
			n, _, err := copyFile(p, filepath.Join(dir, "all", fmt.Sprint(layer), p), 64<<20)
			total += n
			// The first layer is the large file, with what it takes to be as large as the others.
			layer = min(int(float64(total)/dataBytes*dataLayers), dataLayers-1)
			return err
		})
		if err != nil {
			return err
		}
	}
	layers, err := os.ReadDir(filepath.Join(dir, "all"))
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "bench: the image of W11 has %.0f MB in %d layers\n", float64(total)/1e6, len(layers))
	text := "FROM " + b.registry + "/debian\n"
	for _, l := range layers {
		text += "COPY all/" + l.Name() + " /m/" + l.Name() + "\n"
	}
	image := filepath.Join(b.dir, "data.Dockerfile")
	if err := os.WriteFile(image, []byte(text), 0o644); err != nil {
		return err
	}
	ref := b.registry + "/" + dataImage
	if err := b.setupDen("build", "-q", "-f", image, "-t", ref, dir); err != nil {
		return err
	}
	if err := b.setupDen("push", "-q", ref); err != nil {
		return err
	}
	return b.write("W11", 0, "FROM "+ref+" AS result\nRUN true\n")
}
