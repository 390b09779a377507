// Command base is a static shell with the common tools: the whole user space
// of den's demonstration image, and of tests that have no registry.
//
// It is one file under many names, as busybox is: called "sh" it is a POSIX
// shell (mvdan.cc/sh), called by a tool's name it is that tool.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mvdan.cc/sh/moreinterp/coreutils"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

func main() {
	name := filepath.Base(os.Args[0])
	var err error
	switch {
	case name != "sh" && len(os.Args) == 3 && os.Args[1] == "--install":
		err = install(os.Args[2])
	case name == "sh":
		err = shell(os.Args[1:])
	default:
		err = tool(name, os.Args[1:])
	}
	var status interp.ExitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// tools that this file adds to those of the coreutils package.
var ownTools = map[string]func(args []string, in io.Reader, out io.Writer) error{
	"chown": chown,
	"date": func(_ []string, _ io.Reader, out io.Writer) error {
		_, err := fmt.Fprintln(out, time.Now().UTC().Format(time.RFC3339))
		return err
	},
	"env": func(_ []string, _ io.Reader, out io.Writer) error {
		_, err := fmt.Fprintln(out, strings.Join(os.Environ(), "\n"))
		return err
	},
	"head": head,
	"hostname": func(_ []string, _ io.Reader, out io.Writer) error {
		h, err := os.Hostname()
		fmt.Fprintln(out, h)
		return err
	},
	"id": id,
	"ln": ln,
	"readlink": func(args []string, _ io.Reader, out io.Writer) error {
		l, err := os.Readlink(last(args))
		fmt.Fprintln(out, l)
		return err
	},
	"sleep": sleep,
	"stat":  stat,
	"wc":    wc,
}

var borrowedTools = []string{"base64", "cat", "chmod", "cp", "find", "gzip", "ls", "mkdir", "mktemp", "mv", "rm", "shasum", "tar", "touch", "xargs"}

// install fills dir with the tree of the demonstration image.
func install(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "etc", "tmp", "root", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777); err != nil {
		return err
	}
	b, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/sh"), b, 0o755); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
		"etc/group":  "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	names := borrowedTools
	for name := range ownTools {
		names = append(names, name)
	}
	for _, name := range names {
		link := filepath.Join(dir, "bin", name)
		if err := os.Symlink("sh", link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// shell runs "sh [-e] -c SCRIPT [ARG...]", "sh FILE" or a script on stdin.
func shell(args []string) error {
	var script io.Reader = os.Stdin
	name, params := "sh", []string{}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && !strings.Contains(args[0], "c") {
		params = append(params, args[0])
		args = args[1:]
	}
	switch {
	case len(args) > 1 && strings.HasPrefix(args[0], "-") && strings.Contains(args[0], "c"):
		if flags := strings.ReplaceAll(args[0], "c", ""); flags != "-" {
			params = append(params, flags)
		}
		script = strings.NewReader(args[1])
		args = args[min(len(args), 3):]
	case len(args) > 0:
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		script, name, args = f, args[0], args[1:]
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(script, name)
	if err != nil {
		return err
	}
	r, err := interp.New(
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.Params(append(append(params, "--"), args...)...),
		interp.ExecHandlers(),
	)
	if err != nil {
		return err
	}
	return r.Run(context.Background(), file)
}

// tool runs one tool of either collection.
func tool(name string, args []string) error {
	if own, ok := ownTools[name]; ok {
		return own(args, os.Stdin, os.Stdout)
	}
	run := coreutils.ExecHandler(func(_ context.Context, args []string) error {
		return fmt.Errorf("no tool of that name")
	})
	r, err := interp.New(interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return run }))
	if err != nil {
		return err
	}
	words := []*syntax.Word{}
	for _, a := range append([]string{name}, args...) {
		words = append(words, &syntax.Word{Parts: []syntax.WordPart{&syntax.SglQuoted{Value: a}}})
	}
	return r.Run(context.Background(), &syntax.Stmt{Cmd: &syntax.CallExpr{Args: words}})
}

func last(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[len(args)-1]
}

func chown(args []string, _ io.Reader, _ io.Writer) error {
	if len(args) < 2 {
		return errors.New("want UID[:GID] FILE")
	}
	user, group, found := strings.Cut(args[0], ":")
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	gid := -1
	if found {
		if gid, err = strconv.Atoi(group); err != nil {
			return err
		}
	}
	for _, file := range args[1:] {
		if err := os.Lchown(file, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// head [-c BYTES | -n LINES] [FILE...]
func head(args []string, in io.Reader, out io.Writer) error {
	count, lines := int64(10), true
	if len(args) > 1 && (args[0] == "-c" || args[0] == "-n") {
		n, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			return err
		}
		count, lines, args = n, args[0] == "-n", args[2:]
	}
	return each(args, in, func(r io.Reader) error {
		if !lines {
			_, err := io.Copy(out, io.LimitReader(r, count))
			return err
		}
		b := bufio.NewReader(r)
		for range count {
			line, err := b.ReadString('\n')
			if _, err := io.WriteString(out, line); err != nil {
				return err
			}
			if err != nil {
				return ignoreEOF(err)
			}
		}
		return nil
	})
}

// each gives the content of every file, or in where none is named.
func each(files []string, in io.Reader, fn func(io.Reader) error) error {
	if len(files) == 0 {
		return fn(in)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(fn(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func id(_ []string, _ io.Reader, out io.Writer) error {
	_, err := fmt.Fprintf(out, "uid=%d gid=%d\n", os.Getuid(), os.Getgid())
	return err
}

func ln(args []string, _ io.Reader, _ io.Writer) error {
	if len(args) > 0 && strings.HasPrefix(args[0], "-s") {
		if len(args) != 3 {
			return errors.New("want [-s] TARGET NAME")
		}
		return os.Symlink(args[1], args[2])
	}
	if len(args) != 2 {
		return errors.New("want [-s] TARGET NAME")
	}
	return os.Link(args[0], args[1])
}

func sleep(args []string, _ io.Reader, _ io.Writer) error {
	s, err := strconv.ParseFloat(last(args), 64)
	if err == nil {
		time.Sleep(time.Duration(s * float64(time.Second)))
	}
	return err
}

func stat(args []string, _ io.Reader, out io.Writer) error {
	for _, file := range args {
		fi, err := os.Lstat(file)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, fi.Mode(), owner(fi), fi.Size(), file)
	}
	return nil
}

// wc -c|-l [FILE...]
func wc(args []string, in io.Reader, out io.Writer) error {
	lines := len(args) > 0 && args[0] == "-l"
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		args = args[1:]
	}
	return each(args, in, func(r io.Reader) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		n := len(b)
		if lines {
			n = strings.Count(string(b), "\n")
		}
		_, err = fmt.Fprintln(out, n)
		return err
	})
}
