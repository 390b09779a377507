package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/go-archive"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"den/internal/client"
)

// A dockerCopy is docker cp.
type dockerCopy struct {
	*docker
	archive, follow, quiet bool
}

func (d *docker) newCp() *cobra.Command {
	o := &dockerCopy{docker: d}
	cmd := &cobra.Command{
		Use: "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n  docker cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", Short: "Copy files out of a container, or into one", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, src := containerPath(args[0])
			to, dst := containerPath(args[1])
			switch {
			case from != "" && to != "":
				return errors.New("copying between containers is not supported")
			case from == "" && to == "":
				return errors.New("must specify at least one container source")
			case src == "" || dst == "":
				return errors.New("source and destination need a path")
			case from != "":
				return o.out(cmd.Context(), from, src, dst)
			}
			return o.in(cmd.Context(), src, to, dst)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.archive, "archive", "a", false, "Keep numeric owners")
	f.BoolVarP(&o.follow, "follow-link", "L", false, "Copy what a symbolic link in SRC_PATH points to")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Say nothing of what was copied")
	return cmd
}

// containerPath splits CONTAINER:PATH; a path that begins with a slash or a dot has no container.
func containerPath(arg string) (name, path string) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return "", arg
	}
	name, path, found := strings.Cut(arg, ":")
	if !found {
		return "", arg
	}
	return name, path
}

// localPath is absolute, with the trailing /. or / that says to copy what is in a directory.
func localPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return archive.PreserveTrailingDotOrSeparator(abs, path), nil
}

// A counter counts what is read.
type counter struct {
	stdio.Reader
	bytes int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.bytes += int64(n)
	return n, err
}

func (o *dockerCopy) told(c *counter, where string) {
	if !o.quiet && isTerminal(o.io.err) {
		fmt.Fprintf(o.io.err, "Successfully copied %s to %s\n", units.HumanSize(float64(c.bytes)), where)
	}
}

// out copies from a container.
func (o *dockerCopy) out(ctx context.Context, name, src, dst string) (err error) {
	if dst != "-" {
		if dst, err = localPath(dst); err != nil {
			return err
		}
		if dir := filepath.Dir(strings.TrimSuffix(dst, "/")); !isDirectory(dir) {
			return fmt.Errorf("invalid output path: directory %q does not exist", dir)
		}
	} else if isTerminal(o.io.out.File) {
		return errTerminal
	}
	info := archive.CopyInfo{Path: src, Exists: true}
	if o.follow {
		if stat, err := o.stat(ctx, name, src); err == nil && stat.Mode&os.ModeSymlink != 0 {
			info.Path, info.RebaseName = archive.GetRebaseName(src, besideLink(src, stat.LinkTarget))
		}
	}
	header, body, err := o.ask(ctx, client.Request{Method: "GET", Path: pathOf("containers", name, "archive"), Query: url.Values{"path": {info.Path}}})
	if err != nil {
		return err
	}
	defer body.Close()
	if dst == "-" {
		_, err := copyAll(o.io.out, body)
		return err
	}
	stat, err := pathStat(header.Get("X-Docker-Container-Path-Stat"))
	if err != nil {
		return err
	}
	info.IsDir = stat.Mode.IsDir()
	read := &counter{Reader: body}
	content := stdio.NopCloser(read)
	if info.RebaseName != "" {
		_, base := archive.SplitPathDirEntry(info.Path)
		content = archive.RebaseArchiveEntries(content, base, info.RebaseName)
	}
	if err := archive.CopyTo(content, info, dst); err != nil {
		return err
	}
	o.told(read, dst)
	return nil
}

// in copies to a container.
func (o *dockerCopy) in(ctx context.Context, src, name, dst string) error {
	info := archive.CopyInfo{Path: dst}
	stat, err := o.stat(ctx, name, dst)
	if err == nil && stat.Mode&os.ModeSymlink != 0 {
		info.Path = besideLink(dst, stat.LinkTarget)
		stat, err = o.stat(ctx, name, info.Path)
	}
	// Else its directory may be there, and the name is new.
	if err == nil {
		info.Exists, info.IsDir = true, stat.Mode.IsDir()
	}
	read := &counter{Reader: o.io.in}
	q := url.Values{"path": {info.Path}, "noOverwriteDirNonDir": {"true"}}
	if src == "-" && !info.IsDir {
		return fmt.Errorf("destination \"%s:%s\" must be a directory", name, dst)
	}
	if src != "-" {
		if src, err = localPath(src); err != nil {
			return err
		}
		from, err := archive.CopyInfoSourcePath(src, o.follow)
		if err != nil {
			return err
		}
		packed, err := archive.TarResource(from)
		if err != nil {
			return err
		}
		defer packed.Close()
		dir, prepared, err := archive.PrepareArchiveCopy(packed, from, info)
		if err != nil {
			return err
		}
		defer prepared.Close()
		read.Reader = prepared
		q.Set("path", dir)
	}
	if o.archive {
		q.Set("copyUIDGID", "true")
	}
	if err := o.call(ctx, "PUT", pathOf("containers", name, "archive"), q, read, nil); err != nil {
		return err
	}
	o.told(read, name+":"+dst)
	return nil
}

// stat asks what is at a path of a container.
func (o *dockerCopy) stat(ctx context.Context, name, path string) (container.PathStat, error) {
	header, body, err := o.ask(ctx, client.Request{Method: "HEAD", Path: pathOf("containers", name, "archive"), Query: url.Values{"path": {path}}})
	if err != nil {
		return container.PathStat{}, err
	}
	defer body.Close()
	return pathStat(header.Get("X-Docker-Container-Path-Stat"))
}

func pathStat(header string) (stat container.PathStat, err error) {
	text, err := base64.StdEncoding.DecodeString(header)
	if err == nil {
		err = json.Unmarshal(text, &stat)
	}
	if err != nil {
		err = fmt.Errorf("what the daemon says of the path: %w", err)
	}
	return stat, err
}

// besideLink is where a symbolic link at path points to.
func besideLink(path, target string) string {
	if filepath.IsAbs(target) {
		return target
	}
	dir, _ := archive.SplitPathDirEntry(path)
	return filepath.Join(dir, target)
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
