package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endLeft ends every process that has to do with dir and says which they were: what a test has
// started has ended with it. A den that has ended may leave one for a moment that syncs its store.
func endLeft(dir string) error {
	left := leftOf(dir)
	for deadline := time.Now().Add(30 * time.Second); len(left) > 0 && time.Now().Before(deadline); left = leftOf(dir) {
		time.Sleep(50 * time.Millisecond)
	}
	var errs []error
	for pid, why := range left {
		errs = append(errs, fmt.Errorf("process %d is left of a test: %s", pid, why))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return errors.Join(errs...)
}

// leftOf finds the processes, but for this one, whose program, arguments, environment, directory
// or open files are of dir, and says what shows it.
func leftOf(dir string) map[int]string {
	left := map[int]string{}
	all, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, proc := range all {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(proc + "/cmdline") // of what has ended meanwhile nothing can be read
		environ, _ := os.ReadFile(proc + "/environ")
		said := strings.Split(string(cmdline)+"\x00"+string(environ), "\x00")
		files, _ := filepath.Glob(proc + "/fd/*")
		for _, link := range append(files, proc+"/exe", proc+"/cwd", proc+"/root") {
			to, _ := os.Readlink(link)
			said = append(said, to)
		}
		if i := slices.IndexFunc(said, func(s string) bool { return strings.Contains(s, dir+"/") }); i >= 0 {
			left[pid] = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")) + ", with " + said[i]
		}
	}
	return left
}
