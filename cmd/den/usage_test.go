package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// trees are the commands by each of den's names.
func trees() map[string]*cobra.Command {
	io := streams{}
	return map[string]*cobra.Command{"den": newRoot(io), "buildah": newBuildah(newGlobals(), io), "docker": newDocker(newGlobals(), io)}
}

// eachCommand calls f with every command of a tree.
func eachCommand(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		eachCommand(c, f)
	}
}

// Of two commands that answer to one name, one is hidden by the other.
func TestEachNameIsOneCommands(t *testing.T) {
	for _, tree := range trees() {
		eachCommand(tree, func(cmd *cobra.Command) {
			owner := map[string]string{}
			for _, c := range cmd.Commands() {
				for _, name := range append([]string{c.Name()}, c.Aliases...) {
					if owner[name] != "" {
						t.Errorf("%s %s is %s and %s", cmd.CommandPath(), name, owner[name], c.Name())
					}
					owner[name] = c.Name()
				}
			}
		})
	}
}

func TestUsageLinesAreDockers(t *testing.T) {
	for _, tree := range trees() {
		eachCommand(tree, func(cmd *cobra.Command) {
			if line := cmd.UseLine(); strings.Contains(line, "[flags]") && !strings.Contains(cmd.Use, "[flags]") {
				t.Errorf("usage of %s: %s", cmd.CommandPath(), line)
			}
		})
	}
}
