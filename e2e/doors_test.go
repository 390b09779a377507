package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// doorDockerfile does what destroys kaniko's own container, and looks for what a
// step must not see.
const doorDockerfile = `FROM @small AS build
RUN echo made > /made && chown 33:44 /made && chmod 2755 /made
RUN rm -rf /etc /bin/vi; ls /kaniko 2>/dev/null && exit 9; env | grep -i password && exit 8; exit 0
FROM build
COPY . /
ENV WHO=kaniko
LABEL a=b
USER app
`

func TestKanikosExecutorIsReplacedInAContainer(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for name, flags := range map[string][]string{
		"plain": nil, "unconfined": append([]string{"--security-opt=systempaths=unconfined"}, unconfined...),
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); replaceExecutor(t, docker, flags) })
	}
}

func replaceExecutor(t *testing.T, docker dockerd, flags []string) {
	d := newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": expand(t, doorDockerfile), "ctx/f": "f", "ctx/fail/Dockerfile": expand(t, "FROM @small\nRUN exit 5\n")})
	name := newName(t)
	flags = append([]string{"-v", env.den + ":/kaniko/executor:ro", "-e", "DEN_STORE=/work/store", "-e", "CI_REGISTRY_PASSWORD=x"}, flags...)
	out, err := outer{docker, d, flags}.sh(`
		/kaniko/executor --context dir:///work/ctx --dockerfile /work/ctx/Dockerfile --destination ` + name + `:1 --destination ` + name + `:2 \
			--digest-file /work/digest --cache=true --cache-ttl=24h --snapshot-mode=redo --cleanup --use-new-run 2>&1
		test -e /etc/passwd; test -x /bin/den
		code=0; /kaniko/executor -c /work/ctx --context-sub-path fail --no-push --log-format=text >/work/log 2>&1 || code=$?
		echo "exit $code"`)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := os.ReadFile(filepath.Join(d.home, "digest"))
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"Pushed " + name + "@" + string(digest), "accepted without effect: --cache-ttl, --snapshot-mode, --cleanup, --use-new-run, --cache ", "exit 5\n"} {
		if !strings.Contains(out, words) {
			t.Errorf("the executor does not say %q:\n%s", words, out)
		}
	}
	for _, tag := range []string{":1", ":2"} {
		img := fetchImage(t, name+tag)
		if img.digest != string(digest) || img.config.Config.User != "app" || !slices.Contains(img.config.Config.Env, "WHO=kaniko") {
			t.Errorf("%s is %s, want %s: %+v", tag, img.digest, digest, img.config.Config)
		}
		img.tree.is(t, "made", "file 2755 33:44")
		img.tree.holds(t, "f", "f")
		img.tree.lacks(t, "bin/vi", "etc/passwd", "kaniko")
	}
}

// Where kaniko cannot work at all: a random user without capabilities, on a read-only root.
func TestKanikosExecutorWorksInARestrictedContainer(t *testing.T) {
	t.Parallel()
	docker, d := needDockerd(t), newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": expand(t, doorDockerfile), "ctx/f": "f"})
	if err := os.Chmod(d.home, 0o755); err != nil {
		t.Fatal(err)
	}
	name := newName(t)
	flags := []string{"-v", env.den + ":/kaniko/executor:ro", "--user=12345:0", "--cap-drop=ALL", "--security-opt=no-new-privileges",
		"--read-only", "--tmpfs", "/tmp:exec", "--pids-limit=512", "-e", "HOME=/tmp", "-e", "DEN_STORE=/tmp/store"}
	if _, err := (outer{docker, d, flags}).sh(`/kaniko/executor --context dir:///work/ctx --destination ` + name + `:1`); err != nil {
		t.Fatal(err)
	}
	img := fetchImage(t, name+":1")
	img.tree.is(t, "made", "file 2755 33:44")
	img.tree.holds(t, "f", "f")
	img.tree.lacks(t, "bin/vi", "etc/passwd")
}

// asBuildah is den under buildah's name.
func (d *den) asBuildah(args ...string) string {
	d.t.Helper()
	link := filepath.Join(d.home, "buildah")
	if err := os.Symlink(env.den, link); err != nil && !os.IsExist(err) {
		d.t.Fatal(err)
	}
	cmd := exec.Command(link, args...)
	cmd.Env, cmd.Dir = append(d.env, "DEN_INSECURE_REGISTRY="+env.registry), d.home
	out, err := output(cmd)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func TestBuildahsDoorAgreesWithBuildah(t *testing.T) {
	t.Parallel()
	c, d := newContainers(t), newDen(t)
	need(t, "buildah")
	dir := d.dir(files{"Containerfile": "FROM scratch\nCOPY f /\nENV A=1 GONE=2\nLABEL b=2\nWORKDIR /w\nUSER 7\nENTRYPOINT [\"/f\"]\nCMD [\"x\"]\n", "f": "f", "skipped": "s", ".containerignore": "skipped\n"})
	args := []string{"bud", "--unsetenv", "GONE", "--env", "ADDED=1", "--label", "c=3", "--timestamp", "0", "-t", "door", "--format", "docker", dir}
	c.run("buildah", args...)
	id := strings.TrimSpace(d.asBuildah(args...))
	if len(id) != 64 {
		t.Errorf("the ID is %q", id)
	}
	theirs, ours := newName(t), newName(t)
	c.run("buildah", "push", "--tls-verify=false", "door", "docker://"+theirs)
	d.asBuildah("push", "--tls-verify=false", "door", "docker://"+ours)
	a, b := fetchImage(t, theirs), fetchImage(t, ours)
	for _, img := range []image{a, b} {
		slices.Sort(img.config.Config.Env)
		delete(img.config.Config.Labels, "io.buildah.version")
	}
	said := func(img image) string {
		c := img.config.Config
		raw, err := json.Marshal([]any{c.User, c.Env, c.Entrypoint, c.Cmd, c.WorkingDir, c.Labels, img.config.Created, img.manifest.MediaType})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	equal(t, "configuration", said(a), said(b))
	equal(t, "files", a.tree.names(), b.tree.names())
	// A list that den makes is one that skopeo reads.
	d.asBuildah("bud", "--manifest", "list", "--platform", "linux/amd64,linux/arm64", dir)
	d.asBuildah("manifest", "push", "--tls-verify=false", "list", "docker://"+ours+":list")
	if raw := c.run("skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+ours+":list"); !strings.Contains(raw, "arm64") || !strings.Contains(raw, "amd64") {
		t.Errorf("skopeo sees %s", raw)
	}
}
