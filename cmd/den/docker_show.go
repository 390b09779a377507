package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"den/internal/client"
)

func (d *docker) newTop() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top CONTAINER [PS_OPTIONS]", Short: "Show what runs in a container", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var q url.Values
			if len(args) > 1 {
				q = url.Values{"ps_args": {strings.Join(args[1:], " ")}}
			}
			var top container.TopResponse
			if err := d.call(cmd.Context(), "GET", pathOf("containers", args[0], "top"), q, nil, &top); err != nil {
				return err
			}
			w := tabwriter.NewWriter(d.io.out, 20, 1, 3, ' ', 0)
			for _, line := range append([][]string{top.Titles}, top.Processes...) {
				fmt.Fprintln(w, strings.Join(line, "\t"))
			}
			return w.Flush()
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows is for ps
	return cmd
}

func (d *docker) newDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "Show what a container has changed of its image", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var changes []container.FilesystemChange
			if err := d.call(cmd.Context(), "GET", pathOf("containers", args[0], "changes"), nil, nil, &changes); err != nil {
				return err
			}
			for _, c := range changes {
				fmt.Fprintln(d.io.out, c.Kind, c.Path)
			}
			return nil
		},
	}
}

func (d *docker) newExport() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export [OPTIONS] CONTAINER", Short: "Write the files of a container as an archive", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.download(cmd.Context(), client.Request{Method: "GET", Path: pathOf("containers", args[0], "export")}, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "File to write to")
	return cmd
}

var errTerminal = errors.New("cannot write an archive to a terminal: name a file, or redirect")

// download writes an answer to a file, or where that is no terminal to standard output.
func (d *docker) download(ctx context.Context, r client.Request, output string) error {
	if output == "" && isTerminal(d.io.out.File) {
		return errTerminal
	}
	_, body, err := d.ask(ctx, r)
	if err != nil {
		return err
	}
	defer body.Close()
	if output == "" {
		_, err = copyAll(d.io.out, body)
		return err
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	_, err = copyAll(f, body)
	return errors.Join(err, f.Close())
}

func (d *docker) newCommit() *cobra.Command {
	var author, message string
	var changes []string
	var pause bool
	cmd := &cobra.Command{
		Use: "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]", Short: "Make an image of a container", Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"container": {args[0]}, "author": {author}, "comment": {message}, "changes": changes}
			if len(args) == 2 {
				q.Set("repo", args[1])
			}
			if !pause {
				q.Set("pause", "0")
			}
			var made struct {
				ID string `json:"Id"`
			}
			if err := d.call(cmd.Context(), "POST", "/commit", q, struct{}{}, &made); err != nil {
				return err
			}
			fmt.Fprintln(d.io.out, made.ID)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&author, "author", "a", "", "Author")
	f.StringVarP(&message, "message", "m", "", "Message")
	f.StringArrayVarP(&changes, "change", "c", nil, "Apply a Dockerfile instruction to the image")
	f.BoolVarP(&pause, "pause", "p", true, "Pause the container meanwhile")
	return cmd
}

func (d *docker) newImport() *cobra.Command {
	var message, platform string
	var changes []string
	cmd := &cobra.Command{
		Use: "import [OPTIONS] FILE|URL|- [REPOSITORY[:TAG]]", Short: "Make an image of an archive of files", Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"fromSrc": {"-"}, "message": {message}, "changes": changes, "platform": {platform}}
			if len(args) == 2 {
				q.Set("repo", args[1])
			}
			r := client.Request{Method: "POST", Path: "/images/create", Query: q}
			switch {
			case args[0] == "-":
				r.Body = d.io.in
			case strings.HasPrefix(args[0], "http://"), strings.HasPrefix(args[0], "https://"):
				q.Set("fromSrc", args[0]) // the daemon fetches it
			default:
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				r.Body = f
			}
			return d.stream(cmd.Context(), r, false)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&message, "message", "m", "", "Message of the image's history")
	f.StringVar(&platform, "platform", "", "Platform of the image")
	f.StringArrayVarP(&changes, "change", "c", nil, "Apply a Dockerfile instruction to the image")
	return cmd
}
