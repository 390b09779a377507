// Command box is the one program of the images that the script tests run: a few
// tools, each the name of a link or the first argument.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

var tools map[string]func(args []string) error

func main() {
	tools = allTools()
	args := append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...)
	if args[0] == "box" {
		args = args[1:]
	}
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		os.Exit(1)
	}
}

func allTools() map[string]func(args []string) error {
	return map[string]func(args []string) error{
		"cat": func(args []string) error {
			if len(args) == 0 {
				_, err := io.Copy(os.Stdout, os.Stdin)
				return err
			}
			for _, a := range args {
				b, err := os.ReadFile(a)
				if err != nil {
					return err
				}
				os.Stdout.Write(b)
			}
			return nil
		},
		// deaf hears no signal but the last.
		"deaf": func([]string) error {
			signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
			fmt.Println("ready")
			time.Sleep(time.Hour)
			return nil
		},
		// do runs several tools, one after the other.
		"do": func(args []string) error {
			for _, a := range args {
				if err := run(strings.Fields(a)); err != nil {
					return err
				}
			}
			return nil
		},
		"echo": func(args []string) error { fmt.Println(strings.Join(args, " ")); return nil },
		"env": func([]string) error {
			env := os.Environ()
			slices.Sort(env)
			fmt.Println(strings.Join(env, "\n"))
			return nil
		},
		"err":  func(args []string) error { fmt.Fprintln(os.Stderr, strings.Join(args, " ")); return nil },
		"exit": func(args []string) error { n, _ := strconv.Atoi(args[0]); os.Exit(n); return nil },
		"fds": func([]string) error {
			entries, err := os.ReadDir("/proc/self/fd")
			for _, e := range entries {
				if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
					fmt.Println(e.Name(), to)
				}
			}
			return err
		},
		"hostname": func([]string) error { h, err := os.Hostname(); fmt.Println(h); return err },
		"id": func([]string) error {
			groups, err := os.Getgroups()
			slices.Sort(groups)
			fmt.Printf("uid=%d gid=%d groups=%v\n", os.Getuid(), os.Getgid(), groups)
			return err
		},
		"links": func([]string) error {
			b, err := os.ReadFile("/proc/net/dev")
			for _, line := range strings.Split(string(b), "\n")[2:] {
				if name, _, ok := strings.Cut(line, ":"); ok {
					fmt.Println(strings.TrimSpace(name))
				}
			}
			return err
		},
		"ls": func(args []string) error {
			entries, err := os.ReadDir(args[0])
			for _, e := range entries {
				fmt.Println(e.Name())
			}
			return err
		},
		"nofile": func([]string) error {
			var l syscall.Rlimit
			err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
			fmt.Printf("nofile=%d:%d\n", l.Cur, l.Max)
			return err
		},
		"pid": func([]string) error { fmt.Println("pid", os.Getpid()); return nil },
		"pwd": func([]string) error { d, err := os.Getwd(); fmt.Println(d); return err },
		"rm":  func(args []string) error { return os.Remove(args[0]) },
		"sleep": func(args []string) error {
			n, _ := strconv.ParseFloat(args[0], 64)
			time.Sleep(time.Duration(n * float64(time.Second)))
			return nil
		},
		"spam": func(args []string) error {
			n, _ := strconv.Atoi(args[0])
			for range n {
				if _, err := fmt.Println("spam"); err != nil {
					return err
				}
			}
			return nil
		},
		"stat": func(args []string) error {
			fi, err := os.Stat(args[0])
			if err == nil {
				st := fi.Sys().(*syscall.Stat_t)
				fmt.Printf("%s %v %d:%d\n", args[0], fi.Mode(), st.Uid, st.Gid)
			}
			return err
		},
		// trap says that it is ready, waits for one signal, and names it, and any
		// that comes soon after.
		"trap": func(args []string) error {
			c := make(chan os.Signal, 8)
			signal.Notify(c, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
			fmt.Println("ready")
			fmt.Println("got", <-c)
			select {
			case again := <-c:
				fmt.Println("got", again, "again")
			case <-time.After(200 * time.Millisecond):
			}
			if len(args) > 0 {
				return run(args)
			}
			return nil
		},
		"true": func([]string) error { return nil },
		"tty": func([]string) error {
			fmt.Println(terminal())
			return nil
		},
		// winch says what the terminal's size is, and when it is another one.
		"winch": func([]string) error {
			c := make(chan os.Signal, 8)
			signal.Notify(c, syscall.SIGWINCH)
			before := terminal()
			fmt.Println("ready", before)
			for range c {
				if now := terminal(); now != before {
					fmt.Println("now", now)
					return nil
				}
			}
			return nil
		},
		// sh -c understands as much of the shell as RUN echo ... > file needs.
		"sh": func(args []string) error {
			words := strings.Fields(args[len(args)-1])
			if i := slices.Index(words, ">"); i >= 0 {
				f, err := os.Create(words[i+1])
				if err != nil {
					return err
				}
				os.Stdout, words = f, words[:i]
			}
			return run(words)
		},
		"write": func(args []string) error {
			return os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")+"\n"), 0o644)
		},
	}
}

func terminal() string {
	var ws [4]uint16
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&ws)))
	if errno != 0 {
		return "not a tty"
	}
	return fmt.Sprintf("tty %dx%d", ws[0], ws[1])
}

func run(args []string) error {
	if tool, ok := tools[args[0]]; ok {
		return tool(args[1:])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
