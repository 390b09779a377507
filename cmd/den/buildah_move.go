package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"den/internal/buildah"
	"den/internal/daemon"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress/display"
)

// printJSON prints a document for a script.
func printJSON(io streams, v any) error {
	raw, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(io.out, string(raw))
	return err
}

// sending are the flags of whatever an image leaves by.
type sending struct {
	remote
	compression, format, digestFile string
	level                           int
	force, quiet, remove, all       bool
}

func (s *sending) bind(f *pflag.FlagSet) {
	s.remote.bind(f)
	f.StringVar(&s.compression, "compression-format", "", "Compression of layers that are not compressed yet (gzip, zstd)")
	f.IntVar(&s.level, "compression-level", 0, "Compression level")
	f.BoolVar(&s.force, "force-compression", false, "Compress again what has another compression")
	f.StringVarP(&s.format, "format", "f", "", "Media types of the manifest (oci, v2s2)")
	f.StringVar(&s.digestFile, "digestfile", "", "Write the digest of what was pushed to a file")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "Do not print progress")
	f.BoolVar(&s.remove, "rm", false, "Remove the image or list after it was pushed")
	s.ignored.toggles(f, "remove-signatures")
	s.ignored.flags(f, "blob-cache", "add-compression")
}

// newFormat is how the image is to look; the second result says that this was asked
// for, whatever it looked like before.
func (s *sending) newFormat() (image.Format, bool, error) {
	f := image.Format{Compression: s.compression, Level: s.level, Force: s.force}
	switch s.format {
	case "":
		return f, false, nil
	case "oci":
		return f, true, nil
	case "v2s2", "docker":
		f.DockerTypes = true
		return f, true, nil
	}
	return f, false, &usageError{fmt.Sprintf("format %q: want oci or v2s2", s.format)}
}

func newBuildahPush(g *globals, io streams) *cobra.Command {
	s := &sending{}
	cmd := &cobra.Command{
		Use:   "push [OPTIONS] IMAGE [DESTINATION]",
		Short: "Push an image to a registry, an archive or a layout",
		Long: `Push an image to docker://NAME, docker-archive:PATH[:NAME], oci:PATH[:TAG] or
oci-archive:PATH[:TAG]. Without DESTINATION that is the image's own registry.`,
		Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error { return s.run(cmd.Context(), g, io, args) },
	}
	s.bind(cmd.Flags())
	cmd.Flags().BoolVar(&s.all, "all", true, "Push every platform's image of several")
	return cmd
}

// run pushes args[0] to args[1].
func (s *sending) run(ctx context.Context, g *globals, io streams, args []string) error {
	from, err := buildah.ParsePlace(args[0], buildah.Storage)
	if err != nil {
		return err
	}
	if from.Transport == buildah.Registry {
		from.Transport = buildah.Storage // docker://NAME has been pulled
	}
	if from.Transport != buildah.Storage {
		return &usageError{fmt.Sprintf("%s: pull it first; what is pushed is an image of the store", from)}
	}
	to := buildah.Place{Transport: buildah.Registry, Name: from.Name}
	if len(args) == 2 {
		if to, err = buildah.ParsePlace(args[1], buildah.Registry); err != nil {
			return err
		}
	}
	host := ""
	if to.Transport == buildah.Registry {
		ref, err := oci.ParseReference(to.Name)
		if err != nil {
			return err
		}
		host = ref.Domain
	}
	f, asked, err := s.newFormat()
	if err != nil {
		return err
	}
	o, err := s.options(g, io, host)
	if err != nil {
		return err
	}
	return g.named(ctx, o, func(d *daemon.Den) error {
		images, err := d.Images.Members(ctx, from.Name)
		if err != nil {
			return err
		}
		if !s.all && len(images) > 1 {
			one, err := d.Images.Resolve(ctx, from.Name, image.ResolveOptions{Mode: image.ResolveLocal})
			if err != nil {
				return err
			}
			images = []*image.Image{one}
		}
		if err := s.send(ctx, d, io, images, to, f, asked); err != nil {
			return err
		}
		if s.remove {
			_, err = d.Images.Remove(ctx, from.Name, image.RemoveOptions{})
		}
		return err
	})
}

// send takes images to a place. asked is whether their manifests are made anew.
func (s *sending) send(ctx context.Context, d *daemon.Den, io streams, images []*image.Image, to buildah.Place, f image.Format, asked bool) (err error) {
	show := display.NewTransfer(io.err, s.quiet)
	defer func() { err = errors.Join(err, show.Close()) }()
	f.Sink = show
	if asked {
		for i, img := range images {
			c := *img
			c.Manifest, c.Target = nil, nil
			images[i] = &c
		}
	}
	b, err := d.Images.Blobs(ctx, images, f)
	if err != nil {
		return err
	}
	defer b.Close()
	switch to.Transport {
	case buildah.Registry:
		err = d.Images.PushBlobs(ctx, b, []string{to.Name}, image.PushOptions{Sink: show})
	case buildah.Storage:
		_, err = d.Images.Commit(ctx, image.Built{Names: []string{to.Name}, Images: b.Images})
	case buildah.OCILayout:
		err = d.Images.ExportLayout(ctx, to.Path, b, layoutNames(to), f)
	case buildah.OCIArchive:
		err = toOutput(to.Path, io, func(w stdio.Writer) error { return d.Images.ExportOCI(ctx, w, b, layoutNames(to), f) })
	case buildah.DockerArchive:
		err = toOutput(to.Path, io, func(w stdio.Writer) error { return d.Images.ExportDocker(ctx, w, b, layoutNames(to), f) })
	}
	if err == nil && s.digestFile != "" {
		err = os.WriteFile(s.digestFile, []byte(b.Target.Digest), 0o644)
	}
	return err
}

// layoutNames are the names that an image gets in an archive or a layout.
func layoutNames(to buildah.Place) []string {
	if to.Name == "" {
		return nil
	}
	return []string{to.Name}
}

func newBuildahPull(g *globals, io streams) *cobra.Command {
	var r remote
	var platform, goos, arch, variant string
	var quiet, allTags, all bool
	cmd := &cobra.Command{
		Use:   "pull [OPTIONS] IMAGE",
		Short: "Pull an image from a registry, an archive or a layout",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := buildah.ParsePlace(args[0], buildah.Registry)
			if err != nil {
				return err
			}
			p, err := parsePlatform(platformOf(platform, goos, arch, variant))
			if err != nil {
				return err
			}
			return pullFrom(cmd.Context(), g, io, &r, from, &pullOptions{all: all, allTags: allTags, quiet: quiet}, p)
		},
	}
	f := cmd.Flags()
	r.bind(f)
	f.StringVar(&platform, "platform", "", "Platform of the image if it has several")
	f.StringVar(&goos, "os", "", "Operating system of the image")
	f.StringVar(&arch, "arch", "", "Architecture of the image")
	f.StringVar(&variant, "variant", "", "Variant of the architecture")
	f.BoolVarP(&quiet, "quiet", "q", false, "Do not print progress")
	f.BoolVarP(&allTags, "all-tags", "a", false, "Pull every tag of the repository")
	f.BoolVar(&all, "all-platforms", false, "Pull the image for every platform it has")
	r.ignored.toggles(f, "remove-signatures")
	r.ignored.flags(f, "policy", "blob-cache", "os-feature", "os-version")
	return cmd
}

// platformOf puts a platform together of --platform, or of --os, --arch and --variant.
func platformOf(platform, goos, arch, variant string) string {
	if platform != "" || goos+arch+variant == "" {
		return platform
	}
	if goos == "" {
		goos = "linux"
	}
	return strings.TrimSuffix(strings.Join([]string{goos, arch, variant}, "/"), "/")
}

func pullFrom(ctx context.Context, g *globals, io streams, r *remote, from buildah.Place, o *pullOptions, p *oci.Platform) error {
	host := ""
	if from.Transport == buildah.Registry {
		ref, err := oci.ParseReference(from.Name)
		if err != nil {
			return err
		}
		host = ref.Domain
	}
	do, err := r.options(g, io, host)
	if err != nil {
		return err
	}
	return g.named(ctx, do, func(d *daemon.Den) error {
		switch from.Transport {
		case buildah.Storage:
			return printID(ctx, d, io, from.Name)
		case buildah.Registry:
			if o.allTags {
				return o.pullAll(ctx, d, io, from.Name, image.PullOptions{Platform: p, AllPlatforms: o.all})
			}
			show := display.NewTransfer(io.err, o.quiet)
			pulled, err := d.Images.Pull(ctx, from.Name, image.PullOptions{Platform: p, AllPlatforms: o.all, Sink: show})
			if err := errors.Join(err, show.Close()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(io.out, buildah.BareID(string(pulled.ConfigDigest)))
			return err
		}
		in, err := openLayout(from.Path)
		if err != nil {
			return err
		}
		loaded, err := d.Images.Load(ctx, in, image.LoadOptions{Platform: p})
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
		for _, l := range loaded {
			if _, err := fmt.Fprintln(io.out, buildah.BareID(string(l.ConfigDigest))); err != nil {
				return err
			}
		}
		return nil
	})
}

// printID prints the ID of an image that is here.
func printID(ctx context.Context, d *daemon.Den, io streams, name string) error {
	img, err := d.Images.Resolve(ctx, name, image.ResolveOptions{Mode: image.ResolveLocal})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(io.out, buildah.BareID(string(img.ConfigDigest)))
	return err
}

// An imageInspection has the parts of buildah inspect that are about an image.
type imageInspection struct {
	Type            string
	FromImage       string
	FromImageID     string
	FromImageDigest string `json:",omitempty"`
	Config          string
	Manifest        string `json:",omitempty"`
	OCIv1           json.RawMessage
	Docker          json.RawMessage
}

func newBuildahInspect(g *globals, io streams) *cobra.Command {
	var format, kind string
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] IMAGE",
		Short: "Show what is known of an image",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind == "container" {
				return errors.New("buildah inspect --type container: den keeps no working containers")
			}
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				img, err := d.Images.Resolve(cmd.Context(), buildah.Name(args[0]), image.ResolveOptions{Mode: image.ResolveLocal})
				if err != nil {
					return err
				}
				x := imageInspection{
					Type: "buildah 0.0.1", FromImage: img.Name, FromImageID: buildah.BareID(string(img.ConfigDigest)),
					Config: string(img.Config), OCIv1: img.Config, Docker: img.Config,
				}
				if img.Manifest != nil {
					x.FromImageDigest = string(img.Manifest.Digest)
				}
				if format == "" {
					return printJSON(io, x)
				}
				var doc map[string]any
				raw, err := json.Marshal(x)
				if err == nil {
					err = json.Unmarshal(raw, &doc)
				}
				if err != nil {
					return err
				}
				return printFormatted(io.out, format, doc)
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output with a Go template")
	cmd.Flags().StringVarP(&kind, "type", "t", "image", "Kind of thing: image")
	return cmd
}
