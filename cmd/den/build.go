package main

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"
)

// buildOptions are the flags of den build, spelt as docker and buildx spell them.
type buildOptions struct {
	addHosts      []string
	allow         []string
	annotations   []string
	buildArgs     []string
	buildContexts []string
	cacheScopes   []string
	call          string
	check         bool
	file          string
	iidFile       string
	labels        []string
	load          bool
	metadataFile  string
	network       string
	noCache       bool
	noCacheFilter []string
	outputs       []string
	platforms     []string
	progress      string
	pull          bool
	push          bool
	quiet         bool
	secrets       []string
	shmSize       string
	ssh           []string
	tags          []string
	target        string
	ulimits       []string
}

func newBuild(g *globals, io streams) *cobra.Command {
	o := &buildOptions{}
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] PATH | URL | -",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile, without a daemon.

PATH is a directory, URL a git repository (URL#ref:dir) or a tarball, and "-" a
tarball or a Dockerfile on standard input.

Exit codes: 0 built (or, with --check, nothing found), 1 the build failed or
--check found something, 125 the command line was not understood, 130 cancelled.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBuild(cmd.Context(), buildCall{globals: g, options: o, context: args[0], streams: io})
		},
	}
	f := cmd.Flags()
	budgetFlags(f, g)
	f.StringArrayVar(&o.addHosts, "add-host", nil, "Add a custom host-to-IP mapping (`host:ip`)")
	f.StringArrayVar(&o.allow, "allow", nil, "Allow an extra privilege (network.host, security.insecure)")
	f.StringArrayVar(&o.annotations, "annotation", nil, "Add an annotation to the image")
	f.StringArrayVar(&o.buildArgs, "build-arg", nil, "Set a build-time variable")
	f.StringArrayVar(&o.buildContexts, "build-context", nil, "Additional build context (`name=path`)")
	f.StringSliceVar(&o.cacheScopes, "cache-scope", listEnv("DEN_CACHE_SCOPE"), "Scopes of the build cache: the first is written to, all are read (also $DEN_CACHE_SCOPE)")
	f.StringVar(&o.call, "call", "build", "Evaluation of the build: build, check, outline, targets")
	f.BoolVar(&o.check, "check", false, `Shorthand for "--call=check"`)
	f.StringVarP(&o.file, "file", "f", "", "Name of the Dockerfile (default PATH/Dockerfile; - for standard input)")
	f.StringVar(&o.iidFile, "iidfile", "", "Write the image ID to a file")
	f.StringArrayVar(&o.labels, "label", nil, "Set metadata for the image")
	f.BoolVar(&o.load, "load", false, `Keep the result as an image of this store: shorthand for "--output=type=docker" without dest`)
	f.StringVar(&o.metadataFile, "metadata-file", "", "Write the build result's metadata to a file")
	f.StringVar(&o.network, "network", "default", "Networking of RUN instructions (default, host, none)")
	f.BoolVar(&o.noCache, "no-cache", false, "Do not use the cache")
	f.StringArrayVar(&o.noCacheFilter, "no-cache-filter", nil, "Do not cache the named stages")
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "Output destination (`type=local,dest=path`)")
	f.StringArrayVar(&o.platforms, "platform", nil, "Target platforms of the build")
	f.StringVar(&o.progress, "progress", cmp.Or(os.Getenv("BUILDKIT_PROGRESS"), "auto"), "Progress output (auto, plain, tty, quiet, none, rawjson; also $BUILDKIT_PROGRESS)")
	f.BoolVar(&o.pull, "pull", false, "Always try to pull newer base images")
	f.BoolVar(&o.push, "push", false, `Push the result: shorthand for "--output=type=image,push=true"`)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print the image ID on success and nothing else")
	f.StringArrayVar(&o.secrets, "secret", nil, "Secret to expose to the build (`id=mysecret[,src=/local/secret]`)")
	f.StringVar(&o.shmSize, "shm-size", "", "Size of /dev/shm for RUN")
	f.StringArrayVar(&o.ssh, "ssh", nil, "SSH agent socket or keys to expose (`default|<id>[=<socket>|<key>[,<key>]]`)")
	f.StringArrayVarP(&o.tags, "tag", "t", nil, "Name and optionally a tag (`name:tag`)")
	f.StringVar(&o.target, "target", "", "Target build stage")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "Ulimit options (`type=soft[:hard]`)")
	acceptedFlags(cmd, g)
	return cmd
}
