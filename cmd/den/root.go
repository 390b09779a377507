package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A usageError is a command line that den does not understand.
type usageError struct {
	text string
}

func (e *usageError) Error() string { return e.text }

// globals are the flags that every command takes.
type globals struct {
	store     string
	bases     []string
	dataRoot  string
	isolation string
	driver    string
	mirrors   []string
	insecure  []string
	certs     []string
	daemon    string
	config    string
	durable   string
	maxSize   string
	minFree   string
	debug     bool
	// notes are said once den is where it works: a plain user's is started
	// twice, and so is one that detaches.
	notes []string
}

// newGlobals are those that the environment sets.
func newGlobals() *globals {
	return &globals{maxSize: os.Getenv("DEN_STORE_MAX_SIZE"), minFree: os.Getenv("DEN_STORE_MIN_FREE")}
}

// listEnv reads a variable that holds a list, separated by commas.
func listEnv(name string) []string {
	return strings.FieldsFunc(os.Getenv(name), func(r rune) bool { return r == ',' })
}

func newRoot(io streams) *cobra.Command {
	g := newGlobals()
	root := &cobra.Command{
		Use:           "den [OPTIONS] COMMAND",
		Short:         "Build images and run containers inside containers, without a daemon",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version().Version,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = suggestWithin
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(io.out)
	root.SetErr(io.err)
	root.SetVersionTemplate("den version {{.Version}}\n")
	globalFlags(root.PersistentFlags(), g)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(commands(g, io)...)
	root.AddCommand(groups(g, io)...)
	for _, name := range entryNames() {
		root.AddCommand(newEntry(name, io))
	}
	plainUsage(root)
	return root
}

// plainUsage keeps cobra from adding "[flags]" to lines that have docker's "[OPTIONS]".
func plainUsage(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	for _, c := range cmd.Commands() {
		plainUsage(c)
	}
}

// globalFlags binds the flags that every command takes.
func globalFlags(f *pflag.FlagSet, g *globals) {
	f.StringVar(&g.store, "store", "", "Directory of the shared store (default $DEN_STORE, else one per user)")
	f.StringSliceVar(&g.bases, "base-store", listEnv("DEN_BASE_STORE"), "Directory of another store to read from in place, and never to change (also $DEN_BASE_STORE)")
	f.StringVar(&g.durable, "durability", os.Getenv("DEN_STORE_DURABILITY"), "What a power cut may take: epoch (what was written last, which is noticed), strict (nothing that a command said was done), none (also $DEN_STORE_DURABILITY)")
	f.StringVar(&g.dataRoot, "data-root", os.Getenv("DEN_DATA_ROOT"), "Directory that says which engine this is: the owner of names and containers (also $DEN_DATA_ROOT)")
	f.StringVar(&g.isolation, "isolation", "", "Rung of isolation: auto, privileged, userns, sentry, chroot (default $DEN_ISOLATION, else auto)")
	f.StringVar(&g.driver, "storage-driver", "", "How root file systems are made: auto, overlay, fuse-overlayfs, copy (or vfs); other tools' names mean auto (default $DEN_STORAGE_DRIVER, else auto)")
	f.StringSliceVar(&g.mirrors, "registry-mirror", nil, "Registry mirror for docker.io, or HOST=URL for another (also $DEN_MIRROR)")
	f.StringSliceVar(&g.insecure, "insecure-registry", listEnv("DEN_INSECURE_REGISTRY"), "Registry (host or CIDR) to speak plain HTTP or unverified TLS with (also $DEN_INSECURE_REGISTRY)")
	f.StringSliceVar(&g.certs, "registry-certs", listEnv("DEN_REGISTRY_CERTS"), "Directory of registries' certificates, or HOST=FILE (also $DEN_REGISTRY_CERTS)")
	f.StringVar(&g.daemon, "config-file", os.Getenv("DEN_CONFIG_FILE"), "File like dockerd's daemon.json, for mirrors and insecure registries (default /etc/docker/daemon.json; also $DEN_CONFIG_FILE)")
	f.StringVar(&g.config, "config", "", "Directory of docker's config.json (default $DOCKER_CONFIG, else ~/.docker)")
	f.BoolVarP(&g.debug, "debug", "D", false, "Print what den does")
}

// suggestWithin is how many letters may be wrong in a command that is guessed.
const suggestWithin = 2

// commands lists den's commands in the order of its help.
func commands(g *globals, io streams) []*cobra.Command {
	return []*cobra.Command{
		newBuild(g, io),
		newRun(g, io),
		newPs(g, io),
		newLogs(g, io),
		newStop(g, io),
		newKill(g, io),
		newWait(g, io),
		newRm(g, io),
		newPull(g, io),
		newPush(g, io),
		newImages(g, io),
		newTag(g, io),
		newRmi(g, io),
		newInspect(g, io),
		newHistory(g, io),
		newSave(g, io),
		newLoad(g, io),
		newImport(g, io),
		newLogin(g, io),
		newLogout(g, io),
		newPrune(g, io),
		newStore(g, io),
		newInfo(g, io),
		newDoctor(g, io),
		newVersion(io),
		newKaniko(g, io, "kaniko"),
		newBud(g, io),
		newServe(g, io),
	}
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += fmt.Sprintf("; did you mean %q?", cmd.CommandPath()+" "+near[0])
	}
	return &usageError{fmt.Sprintf("%s\nRun '%s --help' for the commands", text, cmd.CommandPath())}
}

// flagError names the flag nearest to the one that was typed.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	name, ok := strings.CutPrefix(text, "unknown flag: --")
	if ok {
		if near := nearestFlag(cmd.Flags(), name); near != "" {
			text += fmt.Sprintf("; the nearest is --%s", near)
		}
	}
	return &usageError{fmt.Sprintf("%s\nRun '%s --help' for the flags", text, cmd.CommandPath())}
}

func nearestFlag(flags *pflag.FlagSet, name string) string {
	best, bestDistance := "", len(name)/3+2
	flags.VisitAll(func(f *pflag.Flag) {
		if d := editDistance(name, f.Name); d < bestDistance {
			best, bestDistance = f.Name, d
		}
	})
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// exactArgs is cobra.ExactArgs with a usageError.
func exactArgs(n int) cobra.PositionalArgs { return rangeArgs(n, n) }

// rangeArgs accepts from low to high arguments; high -1 is no limit.
func rangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && (high < 0 || len(args) <= high) {
			return nil
		}
		return &usageError{fmt.Sprintf("%s: got %d arguments\nUsage: %s", cmd.CommandPath(), len(args), cmd.UseLine())}
	}
}

// build identifies the binary.
type buildInfo struct {
	Version   string
	GitCommit string
	GoVersion string
	BuiltAt   string
}

// version reads what the linker and the Go toolchain recorded.
func version() buildInfo {
	b := buildInfo{Version: releaseVersion, GitCommit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.GoVersion = info.GoVersion
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.GitCommit = s.Value
		case "vcs.time":
			b.BuiltAt = s.Value
		}
	}
	return b
}

// releaseVersion is the version in changelog/unreleased.
const releaseVersion = "0.1.0-dev"
