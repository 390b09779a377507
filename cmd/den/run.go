package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// runOptions are the flags of den run, spelt as docker run spells them.
type runOptions struct {
	addHosts    []string
	attach      []string
	blkioWeight uint16
	capAdd      []string
	capDrop     []string
	cidFile     string
	cpus        string
	cpuShares   uint64
	cpusetCPUs  string
	cpusetMems  string
	detach      bool
	dns         []string
	dnsOptions  []string
	dnsSearch   []string
	entrypoint  string
	env         []string
	envFiles    []string
	groupAdd    []string
	hostname    string
	init        bool
	interactive bool
	labels      []string
	labelFiles  []string
	memory      string
	memorySwap  string
	reservation string
	mounts      []string
	name        string
	network     string
	pidsLimit   int64
	platform    string
	pull        string
	quiet       bool
	readOnly    bool
	remove      bool
	securityOpt []string
	shmSize     string
	sigProxy    bool
	stopSignal  string
	stopTimeout int
	sysctls     []string
	tmpfs       []string
	tty         bool
	ulimits     []string
	user        string
	volumes     []string
	workdir     string
}

func newRun(g *globals, io streams) *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create and run a container from an image",
		Long: `Create and run a container from an image.

Signals go to the command, also from another den (den stop, den kill). The
container's network is that of the container around den, unless --network=none.

Exit codes: the command's own; 125 if den could not run it, 126 if the command
cannot be executed, 127 if it is not found, 128+N if signal N ended it.`,
		Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := runCall{globals: g, options: o, streams: io, image: args[0], args: args[1:]}
			call.set = cmd.Flags().Changed
			return runRun(cmd.Context(), call)
		},
	}
	f := cmd.Flags()
	budgetFlags(f, g)
	o.bind(f, "host")
	refusedRunFlags(f)
	acceptedRunFlags(f, g)
	return cmd
}

// bind binds the flags that docker run and den run have in common.
func (o *runOptions) bind(f *pflag.FlagSet, network string) {
	f.SetInterspersed(false)
	f.StringArrayVar(&o.addHosts, "add-host", nil, "Add a custom host-to-IP mapping (`host:ip`)")
	f.StringArrayVarP(&o.attach, "attach", "a", nil, "Attach to STDIN, STDOUT or STDERR")
	f.Uint16Var(&o.blkioWeight, "blkio-weight", 0, "Weight at block devices (10 to 1000)")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "Add Linux capabilities")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "Drop Linux capabilities")
	f.StringVar(&o.cidFile, "cidfile", "", "Write the container ID to the file")
	f.StringVar(&o.cpus, "cpus", "", "Number of CPUs")
	f.Uint64VarP(&o.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.StringVar(&o.cpusetCPUs, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "Memory nodes in which to allow execution (0-3, 0,1)")
	f.BoolVarP(&o.detach, "detach", "d", false, "Run the container in the background and print its ID")
	f.StringArrayVar(&o.dns, "dns", nil, "Set DNS servers")
	f.StringArrayVar(&o.dnsOptions, "dns-option", nil, "Set DNS options")
	f.StringArrayVar(&o.dnsSearch, "dns-search", nil, "Set DNS search domains")
	f.StringVar(&o.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	f.StringArrayVarP(&o.env, "env", "e", nil, "Set environment variables")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "Read in a file of environment variables")
	f.StringArrayVar(&o.groupAdd, "group-add", nil, "Add additional groups to join")
	f.StringVarP(&o.hostname, "hostname", "h", "", "Container host name")
	f.BoolVar(&o.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "Keep STDIN open")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "Set metadata on the container")
	f.StringArrayVar(&o.labelFiles, "label-file", nil, "Read in a line delimited file of labels")
	f.StringVarP(&o.memory, "memory", "m", "", "Memory limit")
	f.StringVar(&o.reservation, "memory-reservation", "", "Memory soft limit")
	f.StringVar(&o.memorySwap, "memory-swap", "", "Swap limit equal to memory plus swap: -1 to enable unlimited swap")
	f.StringArrayVar(&o.mounts, "mount", nil, "Attach a file system mount to the container")
	f.StringVar(&o.name, "name", "", "Assign a name to the container")
	f.StringVar(&o.network, "network", network, "Network of the container: `host` (that of the container around den) or none")
	f.StringVar(&o.network, "net", network, "Network of the container")
	hide(f, "net")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "Limit of processes (-1 for unlimited)")
	f.StringVar(&o.platform, "platform", "", "Set platform if the image has several")
	f.StringVar(&o.pull, "pull", "missing", "Pull image before running (`always`, missing, never)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress the pull output")
	f.BoolVar(&o.readOnly, "read-only", false, "Mount the container's root file system as read only")
	f.BoolVar(&o.remove, "rm", false, "Remove the container and its anonymous volumes when it exits")
	f.StringArrayVar(&o.securityOpt, "security-opt", nil, "Security options (no-new-privileges, seccomp=unconfined)")
	f.StringVar(&o.shmSize, "shm-size", "", "Size of /dev/shm")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "Forward signals to the command")
	f.StringVar(&o.stopSignal, "stop-signal", "", "Signal to stop the container")
	f.IntVar(&o.stopTimeout, "stop-timeout", 0, "Seconds that den stop waits before it kills (default 10)")
	f.StringArrayVar(&o.sysctls, "sysctl", nil, "Sysctl options")
	f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "Mount a tmpfs directory")
	f.BoolVarP(&o.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "Ulimit options")
	f.StringVarP(&o.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "Bind mount a volume")
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	f.Bool("help", false, "Print usage") // -h is the host name, as in docker run
}
