package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func testStreams() streams {
	return streams{in: os.Stdin, out: &stdout{File: os.Stdout}, err: os.Stderr}
}

func TestDenAnswersToTheNamesOfOtherTools(t *testing.T) {
	for name, want := range map[string]string{
		"/kaniko/executor": "executor", "/x/kaniko/executor": "executor", "/usr/bin/kaniko": "executor", "kaniko": "executor",
		"/kaniko/warmer": "warmer", "/usr/bin/executor": "den", "/usr/bin/warmer": "den", "/kaniko/den": "den", "den": "den", "": "den",
	} {
		if got := door(name, testStreams()).Name(); got != want {
			t.Errorf("%q is %s, want %s", name, got, want)
		}
	}
}

// kanikoFlags are all flags of kaniko's executor: of its last release, and of the
// fork that goes on with it. A value is given where one is wanted.
const kanikoFlags = `-f=x --dockerfile=x -c=x --context=x --context-sub-path=x -b=x --bucket=x -d=x --destination=x --build-arg=A=b
--target=x --label=a=b --annotation=a=b --custom-platform=linux/arm64 --customPlatform=linux/arm64 --tar-path=x --tarPath=x
--oci-layout-path=x --no-push --no-push-cache --digest-file=x --image-name-with-digest-file=x --image-name-tag-with-digest-file=x
--cache --cache=true --cache-repo=oci:x --cache-dir=/cache --cache-ttl=336h --cache-copy-layers --cache-run-layers=true
--compressed-caching --compression=gzip --compression-level=3 --image-format=oci --snapshot-mode=full --snapshotMode=redo
--single-snapshot --use-new-run --reproducible --force --force-build-metadata --skip-unused-stages --skip-unused-stages=false --cleanup
--pre-cleanup --preserve-context --materialize --ignore-path=/x --ignore-var-run --whitelist-var-run=false --kaniko-dir=/kaniko
--git=branch=x --git=single-branch=true,depth=1,recurse-submodules=true,insecure-skip-tls=false --secret=id=a,src=x --dryrun
--image-fs-extract-retry=1 --image-download-retry=2 --push-retry=3 --push-ignore-immutable-tag-errors --skip-push-permission-check
--insecure --insecure-pull --insecure-registry=x --skip-tls-verify --skip-tls-verify-pull --skip-tls-verify-registry=x
--registry-certificate=h=x --registry-client-cert=h=c,k --registry-mirror=x --registry-map=a=b;c=d --skip-default-registry-fallback
--credential-helpers=env --credential-helpers= --log-format=json --log-timestamp -v=debug --verbosity=debug`

const warmerFlags = `-i=x --image=x -c=x --cache-dir=x -f --force --cache-ttl=1h -d=x --dockerfile=x --build-arg=a=b --customPlatform=linux/arm64
--insecure-pull --skip-tls-verify-pull --insecure-registry=x --skip-tls-verify-registry=x --registry-certificate=h=x
--registry-client-cert=h=c,k --registry-map=a=b --registry-mirror=x --skip-default-registry-fallback --log-format=text --log-timestamp -v=info`

func TestEveryFlagOfKanikoIsTaken(t *testing.T) {
	io := testStreams()
	for list, cmd := range map[string]func() *cobra.Command{
		kanikoFlags: func() *cobra.Command { return door("/kaniko/executor", io) },
		warmerFlags: func() *cobra.Command { return door("/kaniko/warmer", io) },
	} {
		for _, arg := range strings.Fields(list) {
			if err := cmd().ParseFlags([]string{arg}); err != nil {
				t.Errorf("%s: %v", arg, err)
			}
		}
		if err := cmd().ParseFlags(strings.Fields(list)); err != nil {
			t.Errorf("all at once: %v", err)
		}
	}
}

func TestKanikosDefaultsAreKept(t *testing.T) {
	f := door("/kaniko/executor", testStreams()).Flags()
	for name, want := range map[string]string{
		"context": "/workspace/", "dockerfile": "Dockerfile", "kaniko-dir": "/kaniko", "log-format": "color", "verbosity": "info",
		"push-retry": "0", "compression-level": "-1", "no-push": "false", "reproducible": "false",
	} {
		if got := f.Lookup(name).DefValue; got != want {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
}

func TestIgnoredFlagsAreNamedOnceAndTogether(t *testing.T) {
	var i ignored
	cmd := &cobra.Command{}
	i.flags(cmd.Flags(), "value,v")
	i.toggles(cmd.Flags(), "on", "off")
	if err := cmd.ParseFlags([]string{"-v=1", "--value", "2", "--on", "--off=false"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"value", "on"}; !slices.Equal(i.names, want) || i.note("page") != "accepted without effect: --value, --on (page says why)" {
		t.Errorf("%q: %s", i.names, i.note("page"))
	}
	if note := (&ignored{}).note("page"); note != "" {
		t.Error(note)
	}
}
