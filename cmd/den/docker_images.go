package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/spf13/cobra"

	"den/internal/client"
	"den/internal/image"
	"den/internal/oci"
)

func (d *docker) newPull() *cobra.Command {
	var quiet, all bool
	var platform string
	cmd := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if all {
				return d.pullName(cmd.Context(), name, "", platform, quiet)
			}
			d.sayDefaultTag(name, quiet)
			if err := d.pullImage(cmd.Context(), name, platform, quiet); err != nil {
				return err
			}
			_, err := fmt.Fprintln(d.io.out, canonical(name))
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Print the name only")
	f.BoolVarP(&all, "all-tags", "a", false, "Download all tags of the repository")
	f.StringVar(&platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Platform, if the image has several")
	return cmd
}

// sayDefaultTag tells which tag a name without one means.
func (d *docker) sayDefaultTag(name string, quiet bool) {
	if named, err := reference.ParseNormalizedNamed(name); err == nil && reference.IsNameOnly(named) && !quiet {
		fmt.Fprintln(d.io.out, "Using default tag: latest")
	}
}

func canonical(name string) string {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return name
	}
	return ref.String()
}

// pullImage lets the daemon pull one name.
func (d *docker) pullImage(ctx context.Context, name, platform string, quiet bool) error {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return &usageError{err.Error()}
	}
	tag := ref.Tag
	if ref.Digest != "" {
		tag = string(ref.Digest)
	}
	return d.pullName(ctx, ref.Name(), tag, platform, quiet)
}

func (d *docker) pullName(ctx context.Context, name, tag, platform string, quiet bool) error {
	header, err := d.auth(ctx, name)
	if err != nil {
		return err
	}
	q := url.Values{"fromImage": {name}, "tag": {tag}}
	if platform != "" {
		q.Set("platform", platform)
	}
	return d.stream(ctx, client.Request{Method: "POST", Path: "/images/create", Query: q, Header: header}, quiet)
}

func (d *docker) newPush() *cobra.Command {
	var quiet, all bool
	cmd := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]", Short: "Upload an image to a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oci.ParseReference(args[0])
			if err != nil {
				return &usageError{err.Error()}
			}
			header, err := d.auth(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			q := url.Values{}
			if !all {
				q.Set("tag", ref.Tag)
				d.sayDefaultTag(args[0], quiet)
			}
			err = d.stream(cmd.Context(), client.Request{Method: "POST", Path: pathOf("images", ref.Name(), "push"), Query: q, Header: header}, quiet)
			if err == nil && quiet {
				fmt.Fprintln(d.io.out, ref.String())
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress the progress")
	cmd.Flags().BoolVarP(&all, "all-tags", "a", false, "Push all tags of the repository")
	return cmd
}

func (d *docker) newImages() *cobra.Command {
	var filters []string
	var all, digests, noTrunc bool
	t := imagesTable()
	cmd := &cobra.Command{
		Use: "images [OPTIONS] [REPOSITORY[:TAG]]", Short: "List images", Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, a := range args {
				filters = append(filters, "reference="+a)
			}
			q, err := filterQuery(filters)
			if err != nil {
				return err
			}
			var list []struct {
				ID                    string `json:"Id"`
				RepoTags, RepoDigests []string
				Created, Size         int64
				Labels                map[string]string
			}
			if err := d.call(cmd.Context(), "GET", "/images/json", q, nil, &list); err != nil {
				return err
			}
			rows := []map[string]any{}
			for _, i := range list {
				s := &image.Summary{ConfigDigest: oci.Digest(i.ID), Tags: i.RepoTags, Digests: i.RepoDigests, Created: time.Unix(i.Created, 0), SizeBytes: i.Size, Labels: i.Labels}
				for _, r := range s.Rows() {
					rows = append(rows, imageRow(r, noTrunc))
				}
			}
			if digests {
				t.columns = append(t.columns[:2:2], append([]column{{"Digest", "DIGEST"}}, t.columns[2:]...)...)
			}
			return t.print(d.io.out, rows)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "Accepted: there are no intermediate images")
	f.BoolVar(&digests, "digests", false, "Show digests")
	f.StringArrayVarP(&filters, "filter", "f", nil, "Filter output")
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "Only show image IDs")
	f.StringVar(&t.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func (d *docker) newRmi() *cobra.Command {
	var force, noPrune bool
	cmd := &cobra.Command{
		Use: "rmi [OPTIONS] IMAGE [IMAGE...]", Short: "Remove images", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			if noPrune {
				q.Set("noprune", "1")
			}
			return d.each(args, false, func(name string) error {
				var removed []image.Removed
				if err := d.call(cmd.Context(), "DELETE", pathOf("images", name), q, nil, &removed); err != nil {
					return d.unlessGone(err, force)
				}
				for _, r := range removed {
					fmt.Fprintln(d.io.out, r)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Remove it whoever uses it")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "Accepted: untagged parents do not exist")
	return cmd
}

func (d *docker) newTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag SOURCE TARGET", Short: "Give an image one more name", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oci.ParseReference(args[1])
			if err != nil {
				return &usageError{err.Error()}
			}
			return d.call(cmd.Context(), "POST", pathOf("images", args[0], "tag"), url.Values{"repo": {ref.Name()}, "tag": {ref.Tag}}, nil, nil)
		},
	}
}

func (d *docker) newHistory() *cobra.Command {
	o := &historyOptions{}
	cmd := &cobra.Command{
		Use: "history [OPTIONS] IMAGE", Short: "Show how an image came to be", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var rows []image.HistoryRow
			if err := d.call(cmd.Context(), "GET", pathOf("images", args[0], "history"), nil, nil, &rows); err != nil {
				return err
			}
			return o.print(d.io.out, rows)
		},
	}
	o.bind(cmd.Flags())
	return cmd
}

func (d *docker) newSave() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "save [OPTIONS] IMAGE [IMAGE...]", Short: "Write images to an archive", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.download(cmd.Context(), client.Request{Method: "GET", Path: "/images/get", Query: url.Values{"names": args}}, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "File to write to")
	return cmd
}

func (d *docker) newLoad() *cobra.Command {
	var input string
	var quiet bool
	cmd := &cobra.Command{
		Use: "load [OPTIONS]", Short: "Read images from an archive", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var from stdio.Reader = d.io.in
			if input != "" {
				f, err := os.Open(input)
				if err != nil {
					return err
				}
				defer f.Close()
				from = f
			}
			return d.stream(cmd.Context(), client.Request{Method: "POST", Path: "/images/load", Query: url.Values{"quiet": {"1"}}, Body: from}, false)
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "File to read")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress the progress")
	return cmd
}

// dockerBuild are the flags of docker build that the classic request has a word for.
type dockerBuild struct {
	file, target, network, platform, iidFile string
	tags, args, labels, hosts                []string
	noCache, pull, quiet, squash             bool
	ignored                                  ignored
}

func (d *docker) newBuild() *cobra.Command {
	o := &dockerBuild{}
	cmd := &cobra.Command{
		Use: "build [OPTIONS] PATH | URL | -", Short: "Build an image from a Dockerfile", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return d.build(cmd.Context(), o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "Name of the Dockerfile (default PATH/Dockerfile)")
	f.StringArrayVarP(&o.tags, "tag", "t", nil, "Name of the image (repeatable)")
	f.StringArrayVar(&o.args, "build-arg", nil, "Set a build-time variable (repeatable)")
	f.StringArrayVar(&o.labels, "label", nil, "Set a label (repeatable)")
	f.StringArrayVar(&o.hosts, "add-host", nil, "Add a host name (repeatable)")
	f.StringVar(&o.target, "target", "", "Stage to build")
	f.StringVar(&o.network, "network", "default", "Network of RUN")
	f.StringVar(&o.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Platform to build for")
	f.StringVar(&o.iidFile, "iidfile", "", "Write the image's ID to a file")
	f.BoolVar(&o.noCache, "no-cache", false, "Execute every step")
	f.BoolVar(&o.pull, "pull", false, "Ask registries for newer base images")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print the image's ID only")
	f.BoolVar(&o.squash, "squash", false, "Make one layer of what the build adds")
	o.ignored.flags(f, "progress", "cache-from", "memory,m", "memory-swap", "cpu-shares", "cpuset-cpus", "cpu-quota", "cpu-period", "shm-size", "ulimit", "isolation", "security-opt", "cgroup-parent")
	o.ignored.toggles(f, "rm", "force-rm", "compress", "load", "disable-content-trust", "provenance", "sbom")
	return cmd
}

func (d *docker) build(ctx context.Context, o *dockerBuild, from string) error {
	q := url.Values{"version": {"1"}, "t": o.tags, "target": {o.target}, "networkmode": {o.network}, "platform": {o.platform}, "extrahosts": o.hosts}
	args := map[string]*string{}
	for _, a := range o.args {
		name, value, found := strings.Cut(a, "=")
		if !found {
			value, found = os.LookupEnv(name)
		}
		args[name] = nil
		if found {
			args[name] = &value
		}
	}
	for name, v := range map[string]any{"buildargs": args, "labels": keyValues(o.labels)} {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		q.Set(name, string(text))
	}
	for name, on := range map[string]bool{"nocache": o.noCache, "pull": o.pull, "q": o.quiet, "squash": o.squash} {
		if on {
			q.Set(name, "1")
		}
	}
	body, err := o.context(from, q, d.io.in)
	if err != nil {
		return err
	}
	r := client.Request{Method: "POST", Path: "/build", Query: q, Header: http.Header{}}
	if body != nil {
		defer body.Close()
		r.Body = stdio.Reader(body)
	}
	var id strings.Builder
	_, answer, err := d.ask(ctx, r)
	if err != nil {
		return err
	}
	defer answer.Close()
	if err := d.progress(stdio.TeeReader(answer, &idFinder{to: &id}), false); err != nil {
		return err
	}
	if o.iidFile != "" {
		return os.WriteFile(o.iidFile, []byte(id.String()), 0o644)
	}
	return nil
}

// An idFinder looks for the image's ID in a build's lines.
type idFinder struct {
	line strings.Builder
	to   *strings.Builder
}

// maxLine bounds a line that is looked at.
const maxLine = 64 << 10

func (f *idFinder) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			if f.line.Len() < maxLine {
				f.line.WriteByte(c)
			}
			continue
		}
		var m struct {
			Aux    struct{ ID string }
			Stream string
		}
		if json.Unmarshal([]byte(f.line.String()), &m) == nil && (m.Aux.ID != "" || strings.HasPrefix(m.Stream, "sha256:")) {
			f.to.Reset()
			f.to.WriteString(m.Aux.ID + strings.TrimSpace(m.Stream))
		}
		f.line.Reset()
	}
	return len(p), nil
}

// context is the tar of a directory, or standard input, or nothing where the daemon fetches.
func (o *dockerBuild) context(from string, q url.Values, in *os.File) (stdio.ReadCloser, error) {
	q.Set("dockerfile", o.file)
	for _, prefix := range []string{"http://", "https://", "git://", "git@", "github.com/"} {
		if strings.HasPrefix(from, prefix) {
			q.Set("remote", from)
			return nil, nil
		}
	}
	if from == "-" {
		return in, nil
	}
	if o.file != "" {
		rel, err := filepath.Rel(from, o.file)
		if abs, e := filepath.Abs(o.file); e == nil {
			if dir, e := filepath.Abs(from); e == nil {
				rel, err = filepath.Rel(dir, abs)
			}
		}
		if err != nil || strings.HasPrefix(rel, "..") {
			return nil, &usageError{fmt.Sprintf("the Dockerfile %s must be within the build context %s", o.file, from)}
		}
		q.Set("dockerfile", rel)
	}
	r, w := stdio.Pipe()
	go func() { w.CloseWithError(writeContext(w, from)) }()
	return r, nil
}

// writeContext writes a directory as a tar, without what .dockerignore names.
func writeContext(w stdio.Writer, dir string) error {
	var patterns []string
	if f, err := os.Open(filepath.Join(dir, ".dockerignore")); err == nil {
		patterns, err = ignorefile.ReadAll(f)
		f.Close()
		if err != nil {
			return err
		}
	}
	match, err := patternmatcher.New(append(patterns, "!Dockerfile", "!.dockerignore"))
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		if skip, err := match.MatchesOrParentMatches(rel); err != nil || skip {
			return err
		}
		return writeEntry(t, path, rel)
	})
	return errors.Join(err, t.Close())
}

func writeEntry(t *tar.Writer, path, name string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	link := ""
	if fi.Mode().Type() == os.ModeSymlink {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	} else if !fi.Mode().IsRegular() && !fi.IsDir() {
		return nil
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name = filepath.ToSlash(name)
	if fi.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", "" // as docker sends a context
	if err := t.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = stdio.CopyN(t, f, h.Size)
	return err
}
