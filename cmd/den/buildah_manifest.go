package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"den/internal/buildah"
	"den/internal/daemon"
	"den/internal/image"
	"den/internal/oci"
)

func newManifest(g *globals, io streams) *cobra.Command {
	return group("manifest", "Manage lists of images for several platforms",
		newManifestCreate(g, io), newManifestAdd(g, io), newManifestPush(g, io), newManifestInspect(g, io), newManifestRm(g, io), newManifestExists(g, io))
}

func newManifestCreate(g *globals, io streams) *cobra.Command {
	var r remote
	var all, amend bool
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] LIST [IMAGE...]",
		Short: "Create a list, and add images to it",
		Args:  rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := r.options(g, io, "")
			if err != nil {
				return err
			}
			list := buildah.Name(args[0])
			return g.named(cmd.Context(), o, func(d *daemon.Den) error {
				err := d.Images.CreateList(cmd.Context(), list)
				if err != nil && (!amend || !errdefs.IsAlreadyExists(err)) {
					return err
				}
				for _, name := range args[1:] {
					if err := addToList(cmd.Context(), d, list, name, nil, all); err != nil {
						return err
					}
				}
				_, err = fmt.Fprintln(io.out, list)
				return err
			})
		},
	}
	r.bind(cmd.Flags())
	cmd.Flags().BoolVar(&all, "all", false, "Add every platform's image of several")
	cmd.Flags().BoolVarP(&amend, "amend", "a", false, "Add to a list that is there")
	r.ignored.flags(cmd.Flags(), "annotation")
	return cmd
}

func newManifestAdd(g *globals, io streams) *cobra.Command {
	var r remote
	var all bool
	var goos, arch, variant string
	cmd := &cobra.Command{
		Use:   "add [OPTIONS] LIST IMAGE",
		Short: "Add an image to a list",
		Args:  exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePlatform(platformOf("", goos, arch, variant))
			if err != nil {
				return err
			}
			o, err := r.options(g, io, hostOf(args[1]))
			if err != nil {
				return err
			}
			list := buildah.Name(args[0])
			return g.named(cmd.Context(), o, func(d *daemon.Den) error {
				if err := addToList(cmd.Context(), d, list, args[1], p, all); err != nil {
					return err
				}
				_, err := fmt.Fprintln(io.out, list)
				return err
			})
		},
	}
	f := cmd.Flags()
	r.bind(f)
	f.BoolVar(&all, "all", false, "Add every platform's image of several")
	f.StringVar(&goos, "os", "", "Operating system of the image to add")
	f.StringVar(&arch, "arch", "", "Architecture of the image to add")
	f.StringVar(&variant, "variant", "", "Variant of the architecture")
	r.ignored.flags(f, "annotation", "os-version", "os-features", "features")
	return cmd
}

// hostOf is the registry of docker://NAME, empty for an image of the store.
func hostOf(name string) string {
	p, err := buildah.ParsePlace(name, buildah.Storage)
	if err != nil || p.Transport != buildah.Registry {
		return ""
	}
	ref, err := oci.ParseReference(p.Name)
	if err != nil {
		return ""
	}
	return ref.Domain
}

// addToList adds an image that is here, or pulls it first.
func addToList(ctx context.Context, d *daemon.Den, list, name string, p *oci.Platform, all bool) error {
	from, err := buildah.ParsePlace(name, buildah.Storage)
	if err != nil {
		return err
	}
	if from.Path != "" {
		return &usageError{fmt.Sprintf("%s: pull it first", from)}
	}
	members, err := d.Images.Members(ctx, from.Name)
	if from.Transport == buildah.Registry || errdefs.IsNotFound(err) {
		var pulled *image.Pulled
		if pulled, err = d.Images.Pull(ctx, from.Name, image.PullOptions{Platform: p, AllPlatforms: all}); err == nil {
			if members = []*image.Image{pulled.Image}; all {
				members, err = d.Images.Members(ctx, from.Name)
			}
		}
	}
	if err != nil {
		return err
	}
	if p != nil {
		members = slices.DeleteFunc(slices.Clone(members), func(i *image.Image) bool {
			return i.Platform.OS != p.OS || i.Platform.Architecture != p.Architecture || p.Variant != "" && i.Platform.Variant != p.Variant
		})
		if len(members) == 0 {
			return fmt.Errorf("%s has no image for %s/%s", from, p.OS, p.Architecture)
		}
	}
	return d.Images.AddToList(ctx, list, members)
}

func newManifestPush(g *globals, io streams) *cobra.Command {
	s := &sending{}
	cmd := &cobra.Command{
		Use:   "push [OPTIONS] LIST [DESTINATION]",
		Short: "Push a list and its images",
		Args:  rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.list(cmd.Context(), g, io, args)
		},
	}
	s.bind(cmd.Flags())
	cmd.Flags().BoolVar(&s.all, "all", true, "Accepted: the images of the list go along")
	cmd.Flags().BoolP("purge", "p", false, "The same as --rm")
	return cmd
}

// list pushes a list as an index, also if it has one image only.
func (s *sending) list(ctx context.Context, g *globals, io streams, args []string) error {
	name := buildah.Name(args[0])
	to := buildah.Place{Transport: buildah.Registry, Name: name}
	if len(args) == 2 {
		var err error
		if to, err = buildah.ParsePlace(args[1], buildah.Registry); err != nil {
			return err
		}
	}
	f, asked, err := s.newFormat()
	if err != nil {
		return err
	}
	f.Index = true
	host := ""
	if to.Transport == buildah.Registry {
		host = hostOf("docker://" + to.Name)
	}
	o, err := s.options(g, io, host)
	if err != nil {
		return err
	}
	return g.named(ctx, o, func(d *daemon.Den) error {
		images, err := members(ctx, d, name)
		if err != nil {
			return err
		}
		if err := s.send(ctx, d, io, images, to, f, asked); err != nil {
			return err
		}
		if s.remove {
			_, err = d.Images.Remove(ctx, name, image.RemoveOptions{Force: true})
		}
		return err
	})
}

// members are the images of a list that has some.
func members(ctx context.Context, d *daemon.Den, name string) ([]*image.Image, error) {
	images, err := d.Images.Members(ctx, name)
	if err == nil && len(images) == 0 {
		err = fmt.Errorf("list %s has no image; add some with manifest add", name)
	}
	return images, err
}

func newManifestInspect(g *globals, io streams) *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:   "inspect LIST",
		Short: "Print a list as it is pushed",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := r.options(g, io, hostOf(args[0]))
			if err != nil {
				return err
			}
			return g.named(cmd.Context(), o, func(d *daemon.Den) (err error) {
				images, err := d.Images.Members(cmd.Context(), buildah.Name(args[0]))
				if err != nil {
					return err
				}
				if len(images) == 0 {
					return printJSON(io, oci.Index{MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{}})
				}
				b, err := d.Images.Blobs(cmd.Context(), images, image.Format{Index: true})
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, b.Close()) }()
				_, err = fmt.Fprintln(io.out, string(b.Raw()))
				return err
			})
		},
	}
	r.bind(cmd.Flags())
	return cmd
}

func newManifestRm(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use: "rm LIST [LIST...]", Short: "Remove lists", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				for _, name := range args {
					removed, err := d.Images.Remove(cmd.Context(), buildah.Name(name), image.RemoveOptions{Force: true})
					if err != nil {
						return err
					}
					for _, r := range removed {
						if _, err := fmt.Fprintln(io.out, r); err != nil {
							return err
						}
					}
				}
				return nil
			})
		},
	}
}

func newManifestExists(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use: "exists LIST", Short: "End with 0 if there is a list or image of that name, else with 1", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				_, err := d.Images.Members(cmd.Context(), buildah.Name(args[0]))
				if errdefs.IsNotFound(err) {
					return &exitError{1}
				}
				return err
			})
		},
	}
}
