package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"den/internal/engine"
)

func TestEnvironmentIsDockers(t *testing.T) {
	t.Setenv("GIVEN", "outer")
	dir := t.TempDir()
	file := filepath.Join(dir, "env")
	text := "\ufeff# comment\n\n  FILE=a b \nGIVEN\nNOTGIVEN\nQUOTED=\"x\"\nEMPTY=\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	call := runCall{globals: &globals{config: dir}, options: &runOptions{
		envFiles: []string{file}, env: []string{"A=b=c", "GIVEN", "NOTGIVEN", "FILE=flag"},
	}}
	var req engine.RunRequest
	if err := call.environment(&req); err != nil {
		t.Fatal(err)
	}
	want := []string{"FILE=a b ", "GIVEN=outer", `QUOTED="x"`, "EMPTY=", "A=b=c", "GIVEN=outer", "NOTGIVEN", "FILE=flag"}
	if d := cmp.Diff(want, req.Env); d != "" {
		t.Error(d)
	}
	for text, want := range map[string]string{"=x": "no variable name", "A B=c": "contains whitespaces", "\xff": "invalid utf8"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		err := call.environment(&req)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}

func TestProxiesComeFromDockersConfiguration(t *testing.T) {
	t.Setenv("DOCKER_HOST", "")
	dir := t.TempDir()
	config := `{"proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "localhost"}, "tcp://other": {"httpProxy": "http://q:2"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(given ...string) []string {
		t.Helper()
		call := runCall{globals: &globals{config: dir}, options: &runOptions{env: given}}
		var req engine.RunRequest
		if err := call.environment(&req); err != nil {
			t.Fatal(err)
		}
		return req.Env
	}
	want := []string{"HTTP_PROXY=http://p:1", "NO_PROXY=localhost", "http_proxy=http://p:1", "no_proxy=localhost"}
	if d := cmp.Diff(want, env()); d != "" {
		t.Error(d)
	}
	want = []string{"HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "no_proxy=localhost", "NO_PROXY=mine"}
	if d := cmp.Diff(want, env("NO_PROXY=mine")); d != "" {
		t.Error(d)
	}
	t.Setenv("DOCKER_HOST", "tcp://other")
	if d := cmp.Diff([]string{"HTTP_PROXY=http://q:2", "http_proxy=http://q:2"}, env()); d != "" {
		t.Error(d)
	}
}

func TestLimitsAreNumbers(t *testing.T) {
	call := runCall{globals: &globals{}, options: &runOptions{memory: "512m", memorySwap: "1g", cpus: "1.5", shmSize: "64k", ulimits: []string{"nofile=1:2", "core=-1"}}}
	var req engine.RunRequest
	if err := call.limits(&req); err != nil {
		t.Fatal(err)
	}
	want := engine.RunRequest{
		Limits:   engine.Limits{MemoryBytes: 512 << 20, MemorySwapBytes: 1 << 30, CPUs: 1.5},
		ShmBytes: 64 << 10, Ulimits: []engine.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}, {Name: "core", Soft: 1<<64 - 1, Hard: 1<<64 - 1}},
	}
	if d := cmp.Diff(want, req); d != "" {
		t.Error(d)
	}
	for _, o := range []runOptions{
		{memory: "lots"}, {memory: "-1"}, {memorySwap: "x"}, {cpus: "1.5x"}, {cpus: "-1"}, {cpus: "NaN"}, {shmSize: "x"}, {ulimits: []string{"x"}}, {ulimits: []string{"nofile=2:1"}},
	} {
		call.options = &o
		var usage *usageError
		if err := call.limits(&req); !errors.As(err, &usage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
