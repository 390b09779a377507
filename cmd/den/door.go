package main

import (
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// door is the command that den was called as: itself, or a tool whose place it
// takes under that tool's name.
func door(argv0 string, io streams) *cobra.Command {
	path := argv0
	if !strings.Contains(path, "/") {
		if found, err := exec.LookPath(path); err == nil {
			path = found
		}
	}
	base, in := filepath.Base(path), filepath.Base(filepath.Dir(path))
	g := newGlobals()
	switch {
	case base == "kaniko", base == "executor" && in == "kaniko":
		cmd := asRoot(newKaniko(g, io, "executor"), g, io)
		cmd.Annotations = map[string]string{usageExit: "1"}
		return cmd
	case base == "warmer" && in == "kaniko":
		cmd := asRoot(newWarmer(g, io, "warmer"), g, io)
		cmd.Annotations = map[string]string{usageExit: "1"}
		return cmd
	case base == "buildah":
		return asRoot(newBuildah(g, io), g, io)
	case contains(entryNames(), base):
		return newEntry(base, io)
	}
	return newRoot(io)
}

// usageExit marks a command whose mistakes end with 1, as those of kaniko do.
const usageExit = "usage-exits-with-1"

// asRoot makes a command one that stands for itself.
func asRoot(cmd *cobra.Command, g *globals, io streams) *cobra.Command {
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetOut(io.out)
	cmd.SetErr(io.err)
	// The tool's own flags of the same name go first.
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	globalFlags(own, g)
	cmd.PersistentFlags().AddFlagSet(own)
	return cmd
}

// ignored collects the flags of another tool that were given and mean nothing here.
type ignored struct{ names []string }

// flags takes flags with a value, toggles those without one.
func (i *ignored) flags(f *pflag.FlagSet, names ...string) { i.add(f, "", names) }

func (i *ignored) toggles(f *pflag.FlagSet, names ...string) { i.add(f, "true", names) }

func (i *ignored) add(f *pflag.FlagSet, otherwise string, names []string) {
	for _, name := range names {
		name, letter, _ := strings.Cut(name, ",")
		f.VarP(&ignoredFlag{name: name, all: i}, name, letter, "Accepted without effect")
		f.Lookup(name).NoOptDefVal = otherwise
		hide(f, name)
	}
}

// note is the one line about them, empty if there are none.
func (i *ignored) note(page string) string {
	if len(i.names) == 0 {
		return ""
	}
	return "accepted without effect: --" + strings.Join(i.names, ", --") + " (" + page + " says why)"
}

type ignoredFlag struct {
	name string
	said bool
	all  *ignored
}

// Set notes the flag, once, unless it switches off what is not there anyway.
func (i *ignoredFlag) Set(value string) error {
	if !i.said && value != "false" {
		i.said = true
		i.all.names = append(i.all.names, i.name)
	}
	return nil
}

func (i *ignoredFlag) String() string { return "" }

// Type is what help shows for the value.
func (i *ignoredFlag) Type() string { return "string" }
