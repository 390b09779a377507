package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// groups are docker's longer spellings of the same commands: docker image ls,
// docker container run, docker buildx build.
func groups(g *globals, io streams) []*cobra.Command {
	return []*cobra.Command{
		group("builder", "Manage builds", newBuild(g, io), newCachePrune(g, io)),
		group("buildx", "Docker's name for den build", newBuild(g, io), newCachePrune(g, io), renamed(newStoreDf(g, io), "du")),
		group("container", "Manage containers",
			newInspect(g, io), newKill(g, io), newLogs(g, io), renamed(newPs(g, io), "ls", "list", "ps"),
			newContainerPrune(g, io), newRm(g, io), newRun(g, io), newStop(g, io), newWait(g, io)),
		group("image", "Manage images",
			newBuild(g, io), newHistory(g, io), newImport(g, io), newInspect(g, io), newLoad(g, io),
			renamed(newImages(g, io), "ls", "list"), newImagePrune(g, io), newPull(g, io), newPush(g, io),
			renamed(newRmi(g, io), "rm", "remove"), newSave(g, io), newTag(g, io)),
		group("system", "Manage den", newInfo(g, io), newPrune(g, io), newStoreDf(g, io)),
	}
}

func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Args: unknownCommand, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = suggestWithin
	cmd.AddCommand(commands...)
	return cmd
}

// renamed is a command under other names.
func renamed(cmd *cobra.Command, name string, aliases ...string) *cobra.Command {
	_, rest, _ := strings.Cut(cmd.Use, " ")
	cmd.Use, cmd.Aliases = name+" "+rest, aliases
	return cmd
}
