package main

import (
	"context"
	"errors"
	"fmt"
	stdio "io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"den/internal/daemon"
	"den/internal/image"
	"den/internal/progress/display"
)

func newSave(g *globals, io streams) *cobra.Command {
	var output, platform string
	cmd := &cobra.Command{
		Use:   "save [OPTIONS] IMAGE [IMAGE...]",
		Short: "Save images to a tar archive (for docker load, skopeo, podman)",
		Args:  rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				return toOutput(output, io, func(w stdio.Writer) error {
					return d.Images.Save(cmd.Context(), w, args, image.Format{})
				})
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	cmd.Flags().StringVar(&platform, "platform", "", "Accepted: every platform that is here is saved")
	hide(cmd.Flags(), "platform")
	return cmd
}

// toOutput writes to a file that appears only when it is complete, or to
// standard output unless that is a terminal.
func toOutput(file string, io streams, write func(stdio.Writer) error) error {
	if file == "" {
		if term.IsTerminal(int(io.out.Fd())) {
			return errors.New("cowardly refusing to save to a terminal; use the -o flag or redirect")
		}
		return write(io.out)
	}
	fi, err := os.Stat(file)
	switch {
	case err == nil && fi.IsDir():
		return fmt.Errorf("output %s: it is a directory; name a file in it", file)
	case err == nil && !fi.Mode().IsRegular():
		f, err := os.OpenFile(file, os.O_WRONLY, 0) // a device or a pipe is written to as it is
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	// Mode 0600, as docker save has it.
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".den-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

func newLoad(g *globals, io streams) *cobra.Command {
	var input, platform string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "load [OPTIONS]",
		Short: "Load images from a tar archive or STDIN",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := parsePlatform(platform)
			if err != nil {
				return err
			}
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				in, err := openInput(input, io)
				if err != nil {
					return err
				}
				defer in.Close()
				show := display.NewTransfer(io.err, quiet)
				defer show.Close()
				loaded, err := d.Images.Load(cmd.Context(), in, image.LoadOptions{Platform: p, Sink: show})
				if err := errors.Join(err, show.Close()); err != nil {
					return err
				}
				for _, l := range loaded {
					fmt.Fprintln(io.out, l)
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&input, "input", "i", "", "Read from tar archive file, instead of STDIN")
	f.StringVar(&platform, "platform", "", "Unpack one platform's image of several; all are kept")
	f.BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	return cmd
}

func openInput(file string, io streams) (stdio.ReadCloser, error) {
	if file != "" && file != "-" {
		return os.Open(file)
	}
	if term.IsTerminal(int(io.in.Fd())) {
		return nil, errors.New("requested to read from STDIN, but STDIN is a terminal")
	}
	return stdio.NopCloser(io.in), nil
}

type importOptions struct {
	changes  []string
	message  string
	platform string
}

func newImport(g *globals, io streams) *cobra.Command {
	o := &importOptions{}
	cmd := &cobra.Command{
		Use:   "import [OPTIONS] FILE|URL|- [REPOSITORY[:TAG]]",
		Short: "Make an image of a root file system's tar archive",
		Args:  rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImport(cmd.Context(), g, o, io, args)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.changes, "change", "c", nil, "Apply a Dockerfile instruction to the created image")
	f.StringVarP(&o.message, "message", "m", "", "Set commit message for the imported image")
	f.StringVar(&o.platform, "platform", "", "Set platform if server is multi-platform capable")
	return cmd
}

func runImport(ctx context.Context, g *globals, o *importOptions, io streams, args []string) error {
	platform, err := parsePlatform(o.platform)
	if err != nil {
		return err
	}
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		in, err := importSource(ctx, args[0], io)
		if err != nil {
			return err
		}
		defer in.Close()
		opts := image.ImportOptions{Changes: o.changes, Message: o.message, Platform: platform, From: args[0]}
		if len(args) == 2 {
			opts.Name = args[1]
		}
		img, err := d.Images.Import(ctx, in, opts)
		if err != nil {
			return err
		}
		fmt.Fprintln(io.out, img.ConfigDigest)
		return nil
	})
}

func importSource(ctx context.Context, source string, io streams) (stdio.ReadCloser, error) {
	if !strings.HasPrefix(source, "http://") && !strings.HasPrefix(source, "https://") {
		return openInput(source, io)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("import %s: %s", source, res.Status), res.Body.Close())
	}
	return res.Body, nil
}
