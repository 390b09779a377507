// Command measure runs a program and writes how much memory it took, in bytes,
// to a file: the largest resident size of any process that was waited for.
//
// The kernel counts what the process that calls exec had mapped as the new
// program's own (exec_mmap in fs/exec.c folds the old mm's high-water mark into
// ru_maxrss), so a test that holds images in memory cannot measure its child.
// This one is small.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: measure FILE PROGRAM [ARG...]")
		os.Exit(2)
	}
	code, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(125)
	}
	os.Exit(code)
}

// run returns the exit code of the program.
func run(file string, argv []string) (int, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, errors.New("the system tells no resource usage")
	}
	return cmd.ProcessState.ExitCode(), os.WriteFile(file, []byte(strconv.FormatInt(usage.Maxrss<<10, 10)), 0o644)
}
