package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// acceptedFlags are flags of docker build, buildx and the classic builder that
// mean nothing here. They are taken, so that a script goes on working, with one
// line that says so.
func acceptedFlags(cmd *cobra.Command, g *globals) {
	why := map[string]string{
		"builder":       "den has one builder",
		"cache-from":    "den's cache is its store; importing a registry's cache is not there yet",
		"cache-to":      "den's cache is its store; exporting it is not there yet",
		"attest":        "den makes no attestations, so the image has none",
		"provenance":    "den makes no attestations, so the image has none",
		"sbom":          "den makes no attestations, so the image has none",
		"cgroup-parent": "steps stay in the cgroup of the container around den",
		"resource":      "limits of RUN steps are those of the container around den",
		"cpu-period":    "limits of RUN steps are those of the container around den",
		"cpu-quota":     "limits of RUN steps are those of the container around den",
		"cpu-shares":    "limits of RUN steps are those of the container around den",
		"cpuset-cpus":   "limits of RUN steps are those of the container around den",
		"cpuset-mems":   "limits of RUN steps are those of the container around den",
		"memory":        "limits of RUN steps are those of the container around den",
		"memory-swap":   "limits of RUN steps are those of the container around den",
		"security-opt":  "use --allow for extra privileges",
		"policy":        "source policies are not evaluated",
	}
	switches := map[string]string{
		"compress": "the context is read in place",
		"rm":       "nothing is left behind", "force-rm": "nothing is left behind",
		"squash": "layers are kept",
	}
	letters := map[string]string{"memory": "m", "cpu-shares": "c"}
	f := cmd.Flags()
	for name, text := range why {
		f.VarP(&acceptedFlag{name: name, why: text, say: g}, name, letters[name], "Accepted and ignored: "+text)
		hide(f, name)
	}
	for name, text := range switches {
		f.Var(&acceptedFlag{name: name, why: text, say: g}, name, "Accepted and ignored: "+text)
		f.Lookup(name).NoOptDefVal = "true"
		hide(f, name)
	}
}

func hide(f *pflag.FlagSet, name string) { f.Lookup(name).Hidden = true }

// An acceptedFlag says once that it is ignored.
type acceptedFlag struct {
	name, why string
	said      bool
	say       *globals
}

// Set notes the flag; what den does anyway needs no word.
func (a *acceptedFlag) Set(value string) error {
	off := value == "false" || a.name == "provenance" && value == "disabled=true" ||
		a.name == "attest" && slices.Contains(strings.Split(value, ","), "disabled=true")
	if !a.said && !off {
		a.said = true
		a.say.notes = append(a.say.notes, fmt.Sprintf("--%s is ignored: %s", a.name, a.why))
	}
	return nil
}

func (a *acceptedFlag) String() string { return "" }

// Type is what help shows for the value.
func (a *acceptedFlag) Type() string { return "string" }
