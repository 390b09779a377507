package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// spy HALF HALF DIR... looks for what the halves say together: in every process's environment,
// command line, memory and open files, and in every file of its own root and of the directories.
func spy(a []string) error {
	if len(a) < 2 {
		return errors.New("want HALF, HALF and directories")
	}
	look := func(where string, b []byte) {
		for {
			_, rest, ok := bytes.Cut(b, []byte(a[0]))
			if !ok {
				return
			}
			if bytes.HasPrefix(rest, []byte(a[1])) {
				fmt.Println("found in", where)
				return
			}
			b = rest
		}
	}
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := "/proc/" + p.Name()
		for _, name := range []string{"environ", "cmdline", "auxv", "root/run/secrets/s", "cwd/s"} {
			b, _ := os.ReadFile(dir + "/" + name)
			look(dir+"/"+name, b)
		}
		if p.Name() != strconv.Itoa(os.Getpid()) {
			memory(dir, look)
			fds, _ := os.ReadDir(dir + "/fd")
			for _, f := range fds {
				path := dir + "/fd/" + f.Name()
				if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
					file(path, look)
				}
			}
		}
	}
	for _, dir := range append([]string{"/"}, a[2:]...) {
		tree(dir, look)
	}
	for _, e := range os.Environ() {
		look("the environment", []byte(e))
	}
	fmt.Println("looked")
	return nil
}

// memory looks through what may be read of a process.
func memory(dir string, look func(string, []byte)) {
	maps, _ := os.ReadFile(dir + "/maps")
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x rw", &from, &to); err != nil {
			continue
		}
		b := make([]byte, min(to-from, 64<<20))
		n, _ := mem.ReadAt(b, from)
		look(dir+"/mem", b[:max(n, 0)])
	}
}

func file(path string, look func(string, []byte)) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	b := make([]byte, 8<<20)
	n, _ := f.ReadAt(b, 0)
	look(path, b[:max(n, 0)])
}

// tree looks into all files below dir, but those of the kernel.
func tree(dir string, look func(string, []byte)) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		path := strings.TrimSuffix(dir, "/") + "/" + e.Name()
		switch {
		case path == "/proc" || path == "/sys" || path == "/dev":
		case e.IsDir():
			tree(path, look)
		case e.Type().IsRegular():
			file(path, look)
		}
	}
}
