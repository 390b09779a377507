package den_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// sources calls fn with every parsed Go file that is not a test.
func sources(t *testing.T, mode parser.Mode, fn func(file string, src *ast.File)) {
	t.Helper()
	for _, root := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			if d != nil && d.Name() == "testdata" {
				return fs.SkipDir
			}
			if err != nil || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
				return err
			}
			src, err := parser.ParseFile(token.NewFileSet(), file, nil, mode|parser.ParseComments)
			if err == nil && !generator(src) {
				fn(file, src)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// generator says that a file is a program of its own, run by go generate.
func generator(src *ast.File) bool {
	return len(src.Comments) > 0 && src.Comments[0].List[0].Text == "//go:build ignore"
}

func TestEveryPackageHasOneComment(t *testing.T) {
	comments := map[string][]string{}
	sources(t, parser.PackageClauseOnly, func(file string, src *ast.File) {
		dir := filepath.Dir(file)
		comments[dir] = append(comments[dir], nil...)
		if src.Doc == nil {
			return
		}
		text := src.Doc.Text()
		if want := "Package " + src.Name.Name + " "; src.Name.Name != "main" && !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package comment must begin %q", file, want)
		}
		comments[dir] = append(comments[dir], file)
	})
	for dir, files := range comments {
		if len(files) != 1 {
			t.Errorf("%s: %d package comments, want one: %v", dir, len(files), files)
		}
	}
}

// The re-executed child pays for everything that runs at import time.
func TestNothingRunsAtImportTime(t *testing.T) {
	sources(t, 0, func(file string, src *ast.File) {
		for _, decl := range src.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init; do the work where it is wanted", file)
			}
		}
	})
}

// Drawers without a noun collect everything; STYLE in CONTRIBUTING.md names them.
func TestPackagesAreNouns(t *testing.T) {
	drawers := map[string]bool{"util": true, "utils": true, "common": true, "helpers": true, "types": true, "manager": true, "base": true, "misc": true}
	sources(t, parser.PackageClauseOnly, func(file string, src *ast.File) {
		if drawers[src.Name.Name] {
			t.Errorf("%s: package %s is a drawer, not a noun", file, src.Name.Name)
		}
	})
}
