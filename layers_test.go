package den_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rows is the architecture, ground floor first. A package may import only
// packages on lower rows; neighbours on one row never know each other.
// A sub-package that is not named here lives on its parent's row.
var rows = [][]string{
	{"earliest", "failpoint", "oci", "progress", "sys"},
	{"erofs"},
	{"lower"},
	{"cloud", "durable", "layer", "probe", "registry", "socket", "tree"},
	{"network", "sandbox", "snapshot", "store"},
	{"image"},
	{"build/llb", "build/solver"},
	{"build/dockerfile", "build/ops"},
	{"build", "engine"},
	{"broker", "buildah", "buildkitapi", "client", "doctor", "dockerapi", "dockerd", "kaniko"},
	{"daemon", "testkit"}, // testkit on top, so that only tests can import it
}

func TestImportsPointDown(t *testing.T) {
	row := map[string]int{}
	for i, names := range rows {
		for _, name := range names {
			row[name] = i
		}
	}
	// home names the placed package that pkg belongs to, or "" if none does.
	home := func(pkg string) string {
		for ; pkg != "."; pkg = path.Dir(pkg) {
			if _, placed := row[pkg]; placed {
				return pkg
			}
		}
		return ""
	}
	// Sources are parsed, not built: every build tag counts, and go test
	// sees which files were read, so its cache stays honest.
	err := filepath.WalkDir("internal", func(file string, d fs.DirEntry, err error) error {
		if d != nil && d.Name() == "testdata" {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		pkg := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(file)), "internal/")
		from := home(pkg)
		if from == "" {
			t.Errorf("%s: package %s stands on no row; place it or put it under a parent", file, pkg)
			return nil
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range src.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			rest, ours := strings.CutPrefix(imp, "den/internal/")
			if to := home(rest); ours && from != to && row[from] <= row[to] {
				t.Errorf("%s: %s (row %d) must not import %s (row %d)", file, pkg, row[from], rest, row[to])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
