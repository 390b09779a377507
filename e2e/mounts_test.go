package e2e

import (
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestBindMountsShowContextStagesAndImages(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"dir/file": "context\n", "Dockerfile": `FROM @small AS stage
RUN mkdir /s && echo stage > /s/file
FROM @small
RUN --mount=type=bind,source=dir,target=/mnt cat /mnt/file > /context; touch /mnt/new 2>/dev/null && echo writable >> /context; true
RUN --mount=from=stage,source=/s/file,target=/one cat /one > /stage
RUN --mount=type=bind,from=stage,source=/s,target=/s,rw echo scribble > /s/file && cat /s/file > /scribbled
RUN --mount=type=bind,from=stage,source=/s,target=/s cat /s/file > /untouched
RUN --mount=type=bind,from=@small,source=/etc,target=/other cat /other/passwd | head -1 > /image
`})
		got := d.tree(ctx)
		got.holds(t, "context", "context\n")
		got.holds(t, "stage", "stage\n")
		got.holds(t, "scribbled", "scribble\n")
		got.holds(t, "untouched", "stage\n")
		got.holds(t, "image", "root:x:0:0:root:/root:/bin/sh\n")
		got.lacks(t, "mnt", "one", "s/file", "other/passwd")
	})
}

func TestCacheMountsOutliveBuildsAndStayOutOfImages(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		const dockerfile = `FROM @small AS seed
RUN mkdir /seed && echo seeded > /seed/from
FROM @small
ARG N
RUN --mount=type=cache,target=/shared --mount=type=cache,target=/locked,id=l,sharing=locked --mount=type=cache,target=/private,sharing=private,mode=0700,uid=33,gid=33 \
    --mount=type=cache,target=/seeded,from=seed,source=/seed \
    for c in shared locked private; do echo $N >> /$c/log; cat /$c/log > /$c.log; done; stat -c '%a %u:%g' /private > /mode; cat /seeded/from > /seeded.log; echo $N >> /seeded/from
RUN --mount=type=cache,target=/elsewhere,id=l,ro cat /elsewhere/log > /read; touch /elsewhere/x 2>/dev/null && echo written >> /read; true
`
		ctx := d.dir(files{"Dockerfile": dockerfile})
		d.tree("--build-arg", "N=1", ctx)
		got := d.tree("--build-arg", "N=2", ctx)
		for _, c := range []string{"shared", "locked", "private", "read"} {
			got.holds(t, strings.TrimSuffix(c, ".log")+map[bool]string{true: "", false: ".log"}[c == "read"], "1\n2\n")
		}
		got.holds(t, "mode", "700 33:33\n")
		got.holds(t, "seeded.log", "seeded\n1\n")
		got.lacks(t, "shared/log", "locked/log", "private/log", "seeded/from")
	})
}

// Two processes hold a step open at once, where sharing allows it.
func TestCacheMountSharingHoldsAcrossProcesses(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	// Each step leaves its name, waits up to five seconds for the other's, and says whether it came.
	// The options of a cache mount are no part of a step's key, so the command names the way.
	step := func(sharing, me, other string) string {
		return d.dir(files{"Dockerfile": "FROM @small\nRUN --mount=type=cache,target=/c,id=" + sharing + ",sharing=" + sharing +
			" : " + sharing + "; touch /c/" + me + "; for i in $(seq 50); do [ -e /c/" + other + " ] && break; sleep 0.1; done; ls /c > /" + me + "; rm /c/" + me + "\n"})
	}
	d.run("build", d.dir(files{"Dockerfile": "FROM @small\nRUN true\n"})) // the base is there
	for sharing, met := range map[string]bool{"shared": true, "private": false, "locked": false} {
		t.Run(sharing, func(t *testing.T) {
			t.Parallel()
			var wg sync.WaitGroup
			var trees [2]tree
			for i, ctx := range []string{step(sharing, "a", "b"), step(sharing, "b", "a")} {
				wg.Go(func() { trees[i] = d.tree(ctx) })
			}
			wg.Wait()
			want := map[bool]int64{true: int64(len("a\nb\n")), false: int64(len("a\n"))}[met]
			if a, b := trees[0]["a"].Size, trees[1]["b"].Size; a != want && b != want || !met && (a != want || b != want) {
				t.Errorf("the steps saw %d and %d bytes of names, want %d", a, b, want)
			}
		})
	}
}

func TestSecretsReachTheStepAndNothingElse(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		d = d.with("TOKEN=s3cr3t-env")
		ctx := d.dir(files{"secret.txt": "s3cr3t-file", ".dockerignore": "secret.txt\n", "Dockerfile": `FROM @small
RUN --mount=type=secret,id=file cat /run/secrets/file | sha256sum > /sum; stat -c '%a %u:%g' /run/secrets/file > /mode
RUN --mount=type=secret,id=file,target=/deep/in/here,mode=0440,uid=33,gid=44 stat -c '%a %u:%g %s' /deep/in/here > /mode2
RUN --mount=type=secret,id=env,env=IN_ENV echo "$IN_ENV" | md5sum > /env
RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent && echo optional > /absent
`})
		args := []string{"--secret", "id=file,src=" + filepath.Join(ctx, "secret.txt"), "--secret", "id=env,env=TOKEN", ctx}
		img := d.image(args...)
		img.tree.holds(t, "mode", "400 0:0\n")
		img.tree.holds(t, "mode2", "440 33:44 11\n")
		img.tree.holds(t, "env", fmt.Sprintf("%x  -\n", md5.Sum([]byte("s3cr3t-env\n"))))
		img.tree.holds(t, "absent", "optional\n")
		img.tree.lacks(t, "run/secrets/file", "deep/in/here")
		d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM @small\nRUN --mount=type=secret,id=absent,required=true true\n"})}, "absent")
		for _, secret := range []string{"s3cr3t-file", "s3cr3t-env"} {
			if at := grepTree(t, d.store(), secret); at != "" {
				t.Errorf("the store holds the secret %s in %s", secret, at)
			}
		}
		d.fill(ctx, files{"secret.txt": "another secret"})
		if got := d.with("TOKEN=other").steps(args...); len(got) != 0 {
			t.Errorf("other secrets executed %q", got)
		}
	})
}

// grepTree is the first file below dir that holds text, or "".
func grepTree(t *testing.T, dir, text string) (found string) {
	t.Helper()
	out, err := exec.Command("grep", "-rlF", "--exclude-dir=proc", text, dir).Output()
	if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() > 1 {
		t.Logf("grep: %v\n%s", err, exit.Stderr)
	}
	found, _, _ = strings.Cut(string(out), "\n")
	return found
}

func TestAgentForwardsKeysOfItsOwnerOnly(t *testing.T) {
	t.Parallel()
	need(t, "ssh-agent", "ssh-add", "ssh-keygen")
	everyRung(t, func(t *testing.T, d *den) {
		sock, key := filepath.Join(d.home, "agent"), filepath.Join(d.home, "key")
		if b, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "key-of-the-test", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, b)
		}
		d.own(key)
		agent := exec.Command("ssh-agent", "-D", "-a", sock)
		agent.SysProcAttr = d.command(t.Context()).SysProcAttr
		stop, err := startDaemon(agent, func() error { _, err := os.Stat(sock); return err })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		add := exec.Command("ssh-add", "-q", key)
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sock)
		add.SysProcAttr = agent.SysProcAttr
		if b, err := add.CombinedOutput(); err != nil {
			t.Fatalf("ssh-add: %v\n%s", err, b)
		}
		ctx := d.dir(files{"Dockerfile": `FROM @small
RUN --mount=type=ssh toolbox agent $SSH_AUTH_SOCK > /default
RUN --mount=type=ssh,id=named,target=/agent,uid=33 toolbox agent /agent > /named; stat -c '%u' /agent > /owner
USER 33
RUN --mount=type=ssh,uid=33 toolbox agent $SSH_AUTH_SOCK > /tmp/user
`})
		got := d.with("SSH_AUTH_SOCK="+sock).tree("--ssh", "default", "--ssh", "named="+key, ctx)
		got.holds(t, "default", "ssh-ed25519 key-of-the-test\n")
		got.holds(t, "named", "ssh-ed25519 \n") // den's own agent, as BuildKit's, keeps no comments
		got.holds(t, "owner", "33\n")
		got.holds(t, "tmp/user", "ssh-ed25519 key-of-the-test\n")
		d.fails([]string{"build", "--no-cache", d.dir(files{"Dockerfile": "FROM @small\nRUN --mount=type=ssh,required=true true\n"})}, "ssh")
	})
}

func TestTmpfsMountsAreBoundedAndVanish(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"Dockerfile": `FROM @small
RUN --mount=type=tmpfs,target=/scratch,size=4m grep ' /scratch ' /proc/mounts | cut -d' ' -f3 > /type; dd if=/dev/zero of=/scratch/big bs=1M count=8 2>/dev/null || echo full > /full
RUN ls /scratch | wc -l > /after
`})
		got := d.tree(ctx)
		got.holds(t, "type", "tmpfs\n")
		got.holds(t, "full", "full\n")
		got.holds(t, "after", "0\n")
		got.lacks(t, "scratch/big")
	})
}

func TestMountTargetsCannotLeaveTheRoot(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	outside := filepath.Join(d.home, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx := d.dir(files{"f": "f", "Dockerfile": "FROM @small\nRUN ln -s " + outside + " /escape && ln -s ../../../../../../.." + outside + " /climb\n" +
		"RUN --mount=type=tmpfs,target=/escape touch /escape/a\nRUN --mount=type=bind,target=/climb/x true\nCOPY f /escape/copied\nCOPY f /climb/copied\nWORKDIR /escape/dir\nRUN touch here\n"})
	got := d.tree(ctx)
	if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
		t.Errorf("outside are %v, %v", list, err)
	}
	inside := strings.TrimPrefix(outside, "/")
	got.holds(t, inside+"/copied", "f")
	if _, ok := got[inside+"/dir/here"]; !ok {
		t.Error("the working directory is not where its link leads inside the root")
	}
}
