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
		"/kaniko/warmer": "warmer", "/usr/bin/buildah": "buildah", "/usr/bin/executor": "den", "/usr/bin/warmer": "den", "/kaniko/den": "den", "den": "den", "": "den",
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

// budFlags are all flags of buildah build that den takes, refusedBudFlags those that
// it must not.
const budFlags = `--add-host=a:1.2.3.4 --annotation=a=b --arch=arm64 --authfile=x --build-arg=A=b --build-arg-file=x --build-context=a=b --cache-from=x
--cache-to=x --cache-ttl=1h --cap-add=X --cert-dir=x --cgroup-parent=x --cgroupns=x --compat-volumes --compress --compression-format=gzip
--compression-level=3 --cpp-flag=x --cpu-period=1 --cpu-quota=1 --cpu-shares=1 --cpuset-cpus=0 --cpuset-mems=0 --created-annotation=false --creds=a:b
--disable-compression --dns=1.1.1.1 --dns-option=x --dns-search=x --env=A=b --file=x -f=x --force-compression --force-rm --format=docker --from=x
--group-add=x --hooks-dir=x --http-proxy=false --identity-label=false --ignorefile=x --iidfile=x --iidfile-raw=x --inherit-annotations=false
--inherit-labels=false --ipc=host --isolation=chroot --isolation=oci --isolation=rootless --jobs=2 --label=a=b --layer-label=a=b --layers --layers=false
--logfile=x --logsplit --manifest=x --memory=1g -m=1g --memory-swap=1g --metadata-file=x --network=host --no-cache --no-hostname --no-hosts
--omit-history --os=linux --os-feature=x --os-version=x --output=x -o=x --pid=host --platform=linux/arm64 --pull --pull=always --pull=missing
--pull=never --pull=newer --quiet -q --retry=3 --retry-delay=1s --rewrite-timestamp --rm --runtime=crun --runtime-flag=x --save-stages --secret=id=a
--security-opt=label=disable --shm-size=1m --skip-unused-stages --source-date-epoch=0 --squash --ssh=default --stage-labels --stdin --tag=x -t=x
--target=x --timestamp=0 --tls-verify=false --ulimit=nofile=1 --unsetannotation=x --unsetenv=x --unsetlabel=x --userns=host --userns-gid-map=x
--userns-gid-map-group=x --userns-uid-map=x --userns-uid-map-user=x --uts=host --variant=v8`

const refusedBudFlags = `--all-platforms --cap-drop=X --decryption-key=x --device=x --mount=x --sbom=x --sbom-output=x --sbom-scanner-image=x --sign-by=x
--source-policy-file=x --volume=/a:/b -v=/a:/b`

const buildahGlobals = `--root=x --runroot=x --storage-driver=vfs --storage-opt=x --registries-conf=x --log-level=debug --cgroup-manager=cgroupfs
--imagestore=x --transient-store --userns-uid-map=x --userns-gid-map=x --registries-conf-dir=x`

func TestEveryFlagOfBuildahIsTakenOrRefused(t *testing.T) {
	for _, path := range [][]string{{"buildah", "bud"}, {"buildah", "build"}, {"den", "bud"}} {
		bud := func() *cobra.Command {
			cmd, _, err := door(path[0], testStreams()).Find(path[1:])
			if err != nil {
				t.Fatal(err)
			}
			return cmd
		}
		for _, arg := range strings.Fields(budFlags) {
			if err := bud().ParseFlags([]string{arg}); err != nil {
				t.Errorf("%s %s: %v", path, arg, err)
			}
		}
		for _, arg := range strings.Fields(refusedBudFlags) {
			if err := bud().ParseFlags([]string{arg}); err == nil || strings.Contains(err.Error(), "unknown") {
				t.Errorf("%s %s: %v", path, arg, err)
			}
		}
	}
	for _, arg := range strings.Fields(buildahGlobals) {
		if err := door("buildah", testStreams()).ParseFlags([]string{arg}); err != nil {
			t.Errorf("%s: %v", arg, err)
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
