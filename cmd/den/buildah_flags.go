package main

import (
	"os"

	"github.com/spf13/cobra"

	"den/internal/buildah"
)

// budOptions are the flags of buildah build.
type budOptions struct {
	buildOptions
	remote
	edits                               buildah.Edits
	files, argFiles                     []string
	goos, arch, variant                 []string
	from, ignoreFile, idFileRaw, format string
	logFile, manifest, pullPolicy       string
	timestamp, epoch, securityOpts      string
	compression                         string
	level                               int
	squash, rewrite, proxy              bool
}

func newBud(g *globals, io streams) *cobra.Command {
	o := &budOptions{}
	cmd := &cobra.Command{
		Use:   "bud [OPTIONS] [CONTEXT]",
		Short: "Build an image as buildah does, with its flags",
		Long: `Build an image from a Containerfile or Dockerfile with buildah's flags. ` + buildahPage + `
lists what works and what differs.

Exit codes: 0 built, 1 the build failed, 125 the command line was not understood.`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			g.isolation = buildah.Isolation(g.isolation)
			return runBud(cmd.Context(), g, o, io, args)
		},
	}
	budgetFlags(cmd.Flags(), g)
	o.bind(cmd)
	return cmd
}

func (o *budOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.addHosts, "add-host", nil, "Add a custom host-to-IP mapping (`host:ip`)")
	f.StringArrayVar(&o.annotations, "annotation", nil, "Set an annotation of the image")
	f.StringSliceVar(&o.arch, "arch", nil, "Architecture to build for")
	f.StringSliceVar(&o.goos, "os", nil, "Operating system to build for")
	f.StringSliceVar(&o.variant, "variant", nil, "Variant of the architecture")
	f.StringSliceVar(&o.platforms, "platform", nil, "Platforms to build for")
	f.StringArrayVar(&o.buildArgs, "build-arg", nil, "Set a build-time variable")
	f.StringArrayVar(&o.argFiles, "build-arg-file", nil, "File of build-time variables, NAME=VALUE")
	f.StringArrayVar(&o.buildContexts, "build-context", nil, "Additional build context (`name=path`)")
	f.StringVar(&o.compression, "compression-format", "", "Compression of layers (gzip, zstd)")
	f.IntVar(&o.level, "compression-level", 0, "Compression level")
	f.StringArrayVar(&o.edits.Env, "env", nil, "Set a variable of the image")
	f.StringArrayVar(&o.edits.UnsetEnv, "unsetenv", nil, "Remove a variable of the image")
	f.StringArrayVar(&o.edits.UnsetLabel, "unsetlabel", nil, "Remove a label of the image")
	f.StringArrayVarP(&o.files, "file", "f", nil, "Containerfile (default CONTEXT/Containerfile, then Dockerfile; - for standard input)")
	f.StringVar(&o.format, "format", os.Getenv("BUILDAH_FORMAT"), "Format of the image: oci or docker (also $BUILDAH_FORMAT)")
	f.StringVar(&o.from, "from", "", "Image in the place of the first FROM's")
	f.StringVar(&o.ignoreFile, "ignorefile", "", "File in the place of .containerignore")
	f.StringVar(&o.iidFile, "iidfile", "", "Write the image ID to a file")
	f.StringVar(&o.idFileRaw, "iidfile-raw", "", "Write the image ID without its algorithm to a file")
	f.StringArrayVar(&o.labels, "label", nil, "Set a label of the image")
	f.StringVar(&o.logFile, "logfile", "", "Write progress to a file instead of standard error")
	f.StringVar(&o.manifest, "manifest", "", "Add the image to a list of images, which is made if need be")
	f.StringVar(&o.metadataFile, "metadata-file", "", "Write the build result's metadata to a file")
	f.StringVar(&o.network, "network", "", "Networking of RUN instructions (default, private, host, none)")
	f.BoolVar(&o.noCache, "no-cache", false, "Do not use the cache")
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "Output destination (`type=local,dest=path`)")
	f.StringVar(&o.pullPolicy, "pull", "missing", "When to pull base images (always, missing, newer, never)")
	f.Lookup("pull").NoOptDefVal = "always"
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print the image ID and nothing else")
	f.BoolVar(&o.rewrite, "rewrite-timestamp", false, "Bound the times of files by SOURCE_DATE_EPOCH")
	f.StringArrayVar(&o.secrets, "secret", nil, "Secret for RUN --mount=type=secret (`id=mysecret[,src=/local/secret]`)")
	f.StringVar(&o.shmSize, "shm-size", "", "Size of /dev/shm for RUN")
	f.StringVar(&o.epoch, "source-date-epoch", "", "Time of the image, in seconds since 1970 (also $SOURCE_DATE_EPOCH)")
	f.StringVar(&o.timestamp, "timestamp", "", "Time of the image and its files, in seconds since 1970")
	f.BoolVar(&o.squash, "squash", false, "Make one layer of the image, the base's layers too")
	f.StringArrayVar(&o.ssh, "ssh", nil, "SSH agent socket or keys (`default|<id>[=<socket>|<key>]`)")
	f.StringArrayVarP(&o.tags, "tag", "t", nil, "Name and optionally a tag (`name:tag`)")
	f.StringVar(&o.target, "target", "", "Target build stage")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "Ulimit options (`type=soft[:hard]`)")
	f.BoolVar(&o.proxy, "http-proxy", true, "Pass the proxies of the environment to RUN")
	f.StringVar(&o.securityOpts, "security-opt", "", "Accepted: label=..., and what asks for no profile")
	o.remote.bind(f)
	o.bindIgnored(cmd)
}

// bindIgnored takes what means nothing here, and refuses what must not be ignored.
func (o *budOptions) bindIgnored(cmd *cobra.Command) {
	f := cmd.Flags()
	i := &o.ignored
	i.toggles(f, "compat-volumes", "compress", "created-annotation", "disable-compression", "force-compression", "force-rm", "identity-label",
		"inherit-annotations", "inherit-labels", "layers", "logsplit", "no-hostname", "no-hosts", "omit-history", "rm", "save-stages",
		"skip-unused-stages", "stage-labels", "stdin")
	i.flags(f, "cache-from", "cache-to", "cache-ttl", "cap-add", "cgroup-parent", "cgroupns", "cpp-flag", "cpu-period", "cpu-quota", "cpu-shares,c",
		"cpuset-cpus", "cpuset-mems", "dns", "dns-option", "dns-search", "group-add", "hooks-dir", "ipc", "jobs", "layer-label", "memory,m",
		"memory-swap", "os-feature", "os-version", "pid", "runtime", "runtime-flag", "unsetannotation", "userns", "userns-gid-map",
		"userns-gid-map-group", "userns-uid-map", "userns-uid-map-user", "uts")
	for name, why := range map[string]string{
		"cap-drop":           "steps have Docker's default capabilities, and no fewer can be asked for",
		"device":             "steps get no devices of the machine",
		"volume":             "den mounts no directories of the machine into steps; use --build-context NAME=DIR and RUN --mount=type=bind,from=NAME",
		"mount":              "den mounts no directories of the machine into steps; use --build-context NAME=DIR and RUN --mount=type=bind,from=NAME",
		"source-policy-file": "den evaluates no source policies",
	} {
		letter := map[string]string{"volume": ",v"}[name]
		refuse(f, why, name+letter)
	}
	refuse(f, "den makes no bill of materials", "sbom", "sbom-image-output", "sbom-image-purl-output", "sbom-merge-strategy", "sbom-output",
		"sbom-purl-output", "sbom-scanner-command", "sbom-scanner-image")
	refuse(f, "name the platforms with --platform", "all-platforms")
	f.Lookup("all-platforms").NoOptDefVal = "true"
}
