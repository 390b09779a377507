package e2e

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docker's and den's commands print of one image, given the same flags.
func TestOutputsAreSpeltAsDockerSpellsThem(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	file := filepath.Join(d.home, "image.tar")
	d.run("build", "-t", "spelling:1", d.dir(files{"Dockerfile": compareLabels}))
	d.run("save", "-o", file, "spelling:1")
	docker.run(t, "load", "-q", "-i", file)
	for _, args := range [][]string{
		{"images", "-q", "--no-trunc", "spelling"},
		{"images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "spelling:1"},
		{"images", "--filter", "label=one=1", "--format", "{{.Repository}}", "spelling"},
		{"images", "--filter", "reference=spell*", "-q"},
		{"images", "--filter", "dangling=true", "--filter", "label=spelling", "-q"}, // others use this dockerd, too
		{"images", "no-such-image"},
		{"inspect", "-f", "{{.Id}} {{.Os}}/{{.Architecture}} {{.RepoTags}} {{len .RootFS.Layers}} {{.RootFS.Type}}", "spelling:1"},
		{"inspect", "-f", "{{json .Config.Env}} {{json .Config.Cmd}} {{json .Config.Labels}} {{json .Config.ExposedPorts}} {{.Config.WorkingDir}} {{.Created}}", "spelling:1"},
		{"inspect", "--type=image", "-f", "{{json .RootFS}}", "spelling:1"},
		{"history", "-q", "--no-trunc", "spelling:1"},
		{"history", "--no-trunc", "--format", "{{.CreatedBy}}", "spelling:1"},
		{"history", "--format", "{{.Size}} {{.Comment}}", "spelling:1"},
	} {
		if want, got := megabytes.ReplaceAllString(docker.run(t, args...), "MB"), megabytes.ReplaceAllString(d.run(args...), "MB"); want != got {
			t.Errorf("%s:\n-docker\n+den\n%s", strings.Join(args, " "), diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
		}
	}
	for _, args := range [][]string{{"images", "spelling"}, {"history", "spelling:1"}} { // ages and sizes may be told a moment apart
		blur := regexp.MustCompile(`\s+|[0-9.]+ ?(kB|MB|B)|(Less than a|About a|[0-9]+) (seconds?|minutes?) ago`)
		if want, got := blur.ReplaceAllString(docker.run(t, args...), " "), blur.ReplaceAllString(d.run(args...), " "); want != got {
			t.Errorf("%v:\n-docker\n%s\n+den\n%s", args, want, got)
		}
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(d.run("inspect", "spelling:1")), &list); err != nil || len(list) != 1 {
		t.Errorf("inspect: %d, %v", len(list), err)
	}
	d.run("tag", "spelling:1", "spelling:2")
	d.run("rmi", "spelling:1")
	d.fails([]string{"inspect", "spelling:1"}, "spelling:1")
	if out := d.run("rmi", "spelling:2"); !strings.Contains(out, "Untagged: spelling:2") || !strings.Contains(out, "Deleted: sha256:") {
		t.Errorf("rmi says %q", out)
	}
	d.fails([]string{"rmi", "spelling:2"}, "spelling:2")
	d.fails([]string{"imagse"}, "images")
}

// megabytes may differ in the last digit: docker adds the lengths of symbolic links.
var megabytes = regexp.MustCompile(`[0-9.]+MB`)

const compareLabels = `FROM @small
LABEL one=1 two=2 spelling=docker
ENV A=b
EXPOSE 80
WORKDIR /srv
RUN head -c 3000000 /dev/urandom > /noise
CMD ["sh", "-c", "echo hi"]
`

func TestPruneFreesWhatNobodyUses(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		d.run("build", "-t", "kept", d.dir(files{"Dockerfile": "FROM @small\nRUN echo kept > /kept\n"}))
		d.run("build", "-t", "old", d.dir(files{"Dockerfile": "FROM @small\nRUN head -c 5000000 /dev/urandom > /noise\n"}))
		d.run("rmi", "old")
		before := len(d.layers())
		d.run("prune", "-f", "-a", "--filter", "until=24h")
		if n := len(d.layers()); n != before {
			t.Errorf("prune of what is older than a day left %d of %d layers", n, before)
		}
		d.run("prune", "-f")
		if out := d.run("run", "--rm", "kept", "cat", "/kept"); out != "kept\n" {
			t.Errorf("the kept image says %q", out)
		}
		out := d.run("prune", "-f", "-a")
		if !strings.Contains(out, "Total reclaimed space:") || len(d.layers()) != 0 || diskUsage(t, d.store()) > 1<<20 {
			t.Errorf("%d layers and %d bytes are left: %s", len(d.layers()), diskUsage(t, d.store()), out)
		}
	})
}

func TestImportMakesAnImageOfATree(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		small, err := smallTar()
		if err != nil {
			t.Skip(err)
		}
		id := strings.TrimSpace(d.run("import", "-c", "ENV "+basePath, "-c", `CMD ["echo","imported"]`, "-m", "a note", small, "imported:1"))
		if !strings.HasPrefix(id, "sha256:") {
			t.Errorf("import prints %q", id)
		}
		if out := d.run("run", "--rm", "imported:1"); out != "imported\n" {
			t.Errorf("the image says %q", out)
		}
		if out := d.run("history", "--format", "{{.Comment}}", "imported:1"); !strings.Contains(out, "a note") {
			t.Errorf("history says %q", out)
		}
	})
}
