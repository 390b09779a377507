package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"den/internal/buildah"
	"den/internal/daemon"
	"den/internal/image"
	"den/internal/registry"
)

// buildahPage is the page for people who come from buildah.
const buildahPage = "docs/buildah.md"

func newBuildah(g *globals, io streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "buildah [command]",
		Short: "Build, move and list images with buildah's commands and flags",
		Long: `den under buildah's name: bud, images and what moves them. ` + buildahPage + ` lists what
works and what differs.`,
		Args:    unknownCommand,
		Version: version().Version + " (den)",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetVersionTemplate("buildah version {{.Version}}\n")
	cmd.SuggestionsMinimumDistance = suggestWithin
	cmd.SetFlagErrorFunc(flagError)
	var all ignored
	f := cmd.PersistentFlags()
	all.flags(f, "root", "runroot", "storage-driver", "storage-opt", "registries-conf", "registries-conf-dir", "log-level", "cgroup-manager",
		"imagestore", "userns-uid-map", "userns-gid-map", "short-name-alias-conf", "default-mounts-file")
	all.toggles(f, "transient-store")
	cmd.PersistentPreRun = func(*cobra.Command, []string) {
		g.isolation = buildah.Isolation(g.isolation)
		if note := all.note(buildahPage); note != "" {
			g.notes = append(g.notes, note)
		}
	}
	bud := newBud(g, io)
	bud.Aliases = []string{"build", "build-using-dockerfile"}
	cmd.AddCommand(bud, newBuildahPush(g, io), newBuildahPull(g, io), newBuildahLogin(g, io), newLogout(g, io), newBuildahTag(g, io),
		newBuildahImages(g, io), newBuildahRmi(g, io), newManifest(g, io), newBuildahInspect(g, io), newBuildahVersion(io), newInfo(g, io), newImagePrune(g, io))
	for _, name := range []string{"from", "run", "copy", "add", "commit", "config", "containers", "mount", "umount", "unmount", "rename", "rm", "source", "unshare", "mkcw"} {
		cmd.AddCommand(noWorkingContainer(name))
	}
	plainUsage(cmd)
	return cmd
}

// noWorkingContainer refuses what needs a container that stays between commands.
func noWorkingContainer(name string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("buildah %s: den keeps no working containers; write a Dockerfile and use buildah build", name)
		},
	}
}

// remote are the flags of whatever talks to registries.
type remote struct {
	authfile, certDir, creds string
	tlsVerify                bool
	ignored                  ignored
}

func (r *remote) bind(f *pflag.FlagSet) {
	f.StringVar(&r.authfile, "authfile", "", "File with credentials (also $REGISTRY_AUTH_FILE)")
	f.StringVar(&r.certDir, "cert-dir", "", "Directory of certificates and keys for registries")
	f.StringVar(&r.creds, "creds", "", "Credentials for the registry: `USER[:PASSWORD]`")
	f.BoolVar(&r.tlsVerify, "tls-verify", true, "Require HTTPS and verify certificates")
	r.ignored.flags(f, "retry", "retry-delay")
	refuse(f, "den verifies and makes no signatures, so it would not be what you trust; use skopeo or cosign", "signature-policy", "sign-by", "sign-by-sigstore", "sign-by-sigstore-private-key", "sign-passphrase-file")
	refuse(f, "den has no keys for encrypted layers", "decryption-key", "encryption-key", "encrypt-layer")
}

// refuse makes flags errors that ignoring would make unsafe, or a lie.
func refuse(f *pflag.FlagSet, why string, names ...string) {
	for _, name := range names {
		name, letter, _ := strings.Cut(name, ",")
		f.VarP(refusedOption{why}, name, letter, "Refused: "+why)
		hide(f, name)
	}
}

type refusedOption struct{ why string }

// Set refuses.
func (r refusedOption) Set(string) error { return errors.New(r.why) }

func (refusedOption) String() string { return "" }

// Type is what help shows for the value.
func (refusedOption) Type() string { return "string" }

// options are den's own for one registry's host; empty is any.
func (r *remote) options(g *globals, io streams, host string) (daemon.Options, error) {
	if note := r.ignored.note(buildahPage); note != "" {
		g.notes = append(g.notes, note)
	}
	o, err := g.daemonOptions(io)
	if err != nil {
		return o, err
	}
	if r.authfile != "" {
		if err := os.Setenv("REGISTRY_AUTH_FILE", r.authfile); err != nil {
			return o, err
		}
	}
	if r.certDir != "" {
		o.Certs = append(o.Certs, r.certDir)
	}
	if !r.tlsVerify && host == "" {
		o.Insecure = append(o.Insecure, "*")
	} else if !r.tlsVerify {
		o.Insecure = append(o.Insecure, host)
	}
	if r.creds != "" {
		if host == "" {
			return o, &usageError{"--creds would go to every registry that the Dockerfile names; use login, or --authfile"}
		}
		user, password, _ := strings.Cut(r.creds, ":")
		o.Credentials = func(_ context.Context, asked, _ string) (registry.Credential, error) {
			if asked != host {
				return registry.Credential{}, nil
			}
			return registry.Credential{Username: user, Password: password}, nil
		}
	}
	return o, nil
}

func newBuildahLogin(g *globals, io streams) *cobra.Command {
	cmd := newLogin(g, io)
	login := cmd.RunE
	var r remote
	r.bind(cmd.Flags())
	var get bool
	cmd.Flags().BoolVar(&get, "get-login", false, "Print the user who is logged in")
	cmd.Flags().BoolP("verbose", "v", false, "Accepted without effect")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		server := strings.Join(args, "")
		o, err := r.options(g, io, server)
		if err != nil {
			return err
		}
		g.certs, g.insecure = o.Certs, o.Insecure
		if !get {
			return login(cmd, args)
		}
		reg, err := daemon.Registry(o)
		if err != nil {
			return err
		}
		cred, err := reg.Credential(cmd.Context(), server, "")
		if err != nil || cred.Username == "" {
			return errors.Join(err, fmt.Errorf("not logged into %s", server))
		}
		_, err = fmt.Fprintln(io.out, cred.Username)
		return err
	}
	return cmd
}

func newBuildahTag(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME [NAME...]",
		Short: "Give an image more names",
		Args:  rangeArgs(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				for _, name := range args[1:] {
					if err := d.Images.Tag(cmd.Context(), buildah.Name(args[0]), buildah.Name(name)); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func newBuildahRmi(g *globals, io streams) *cobra.Command {
	cmd := newRmi(g, io)
	remove := cmd.RunE
	var all, prune bool
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all images")
	cmd.Flags().BoolVarP(&prune, "prune", "p", false, "Remove images without a name")
	cmd.Args = rangeArgs(0, -1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for i := range args {
			args[i] = buildah.Name(args[i])
		}
		if all || prune {
			if len(args) > 0 {
				return &usageError{"when using --all or --prune, do not name images"}
			}
			err := withNames(cmd.Context(), g, io, func(d *daemon.Den) (err error) {
				args, err = imageIDs(cmd.Context(), d, prune)
				return err
			})
			if err != nil || len(args) == 0 {
				return err
			}
			if err := cmd.Flags().Set("force", "true"); err != nil {
				return err
			}
		}
		if len(args) == 0 {
			return &usageError{"image name or ID must be specified"}
		}
		return remove(cmd, args)
	}
	return cmd
}

// imageIDs lists the images here, or those that have no name.
func imageIDs(ctx context.Context, d *daemon.Den, dangling bool) ([]string, error) {
	list, err := d.Images.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, s := range list {
		if !dangling || s.Dangling() {
			ids = append(ids, string(s.ConfigDigest))
		}
	}
	return ids, nil
}

func newBuildahImages(g *globals, io streams) *cobra.Command {
	cmd := newImages(g, io)
	list := cmd.RunE
	var asJSON bool
	var i ignored
	cmd.Flags().BoolVar(&asJSON, "json", false, "Output in JSON format")
	i.toggles(cmd.Flags(), "noheading,n", "history")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if note := i.note(buildahPage); note != "" {
			g.notes = append(g.notes, note)
		}
		for n := range args {
			args[n] = buildah.Name(args[n])
		}
		if !asJSON {
			return list(cmd, args)
		}
		filters := map[string][]string{}
		if len(args) == 1 {
			filters["reference"] = args
		}
		return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
			found, err := d.Images.List(cmd.Context(), filters)
			if err != nil {
				return err
			}
			return printJSON(io, imageDocuments(found))
		})
	}
	return cmd
}

// imageDocument is one of buildah images --json.
type imageDocument struct {
	ID           string   `json:"id"`
	Names        []string `json:"names"`
	Digest       string   `json:"digest,omitempty"`
	CreatedAt    string   `json:"createdatraw"`
	SizeBytes    int64    `json:"sizeraw"`
	Architecture []string `json:"platforms"`
}

func imageDocuments(list []*image.Summary) []imageDocument {
	out := []imageDocument{}
	for _, s := range list {
		doc := imageDocument{
			ID: buildah.BareID(string(s.ConfigDigest)), Names: s.Tags, CreatedAt: s.Created.UTC().Format("2006-01-02T15:04:05Z"), SizeBytes: s.SizeBytes,
		}
		for _, d := range s.Digests {
			_, doc.Digest, _ = strings.Cut(d, "@")
		}
		for _, p := range s.Platforms {
			doc.Architecture = append(doc.Architecture, p.OS+"/"+p.Architecture)
		}
		out = append(out, doc)
	}
	return out
}

func newBuildahVersion(io streams) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Display version information", Args: exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			b := version()
			if asJSON {
				return printJSON(io, map[string]string{"version": b.Version + " (den)", "goVersion": b.GoVersion, "gitCommit": b.GitCommit})
			}
			_, err := fmt.Fprintf(io.out, "Version:         %s (den)\nGo Version:      %s\nGit Commit:      %s\n", b.Version, b.GoVersion, b.GitCommit)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "Output in JSON format")
	return cmd
}
