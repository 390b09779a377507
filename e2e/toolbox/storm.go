package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// storm ROUNDS makes that many processes, each of which makes system calls at random, with
// arguments that are small, huge, of memory or of open files, until it has ended itself.
func storm(a []string) error {
	if len(a) == 2 && a[0] == "-" {
		seed, err := strconv.ParseUint(a[1], 10, 64)
		if err != nil {
			return err
		}
		return randomCalls(rand.New(rand.NewPCG(seed, seed)))
	}
	if len(a) != 1 {
		return errors.New("want ROUNDS")
	}
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	for i := range n {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond) // some calls wait for ever
		_ = exec.CommandContext(ctx, "/proc/self/exe", "storm", "-", strconv.Itoa(i)).Run()
		cancel()
	}
	fmt.Println("survived")
	return nil
}

// harmful are calls that say nothing about the kernel: they wait for ever, or end who watches.
var harmful = []uintptr{
	syscall.SYS_KILL, syscall.SYS_TKILL, syscall.SYS_TGKILL, syscall.SYS_RT_SIGQUEUEINFO, syscall.SYS_PTRACE, syscall.SYS_REBOOT,
	syscall.SYS_RT_SIGSUSPEND, syscall.SYS_RT_SIGTIMEDWAIT, syscall.SYS_WAIT4, syscall.SYS_NANOSLEEP, syscall.SYS_CLOCK_NANOSLEEP, syscall.SYS_PPOLL,
	syscall.SYS_PSELECT6, syscall.SYS_FUTEX, syscall.SYS_READ, syscall.SYS_SYNC,
}

func randomCalls(r *rand.Rand) error {
	runtime.LockOSThread()
	page := make([]byte, 1<<16)
	value := func() uintptr {
		switch r.IntN(6) {
		case 0:
			return uintptr(r.IntN(16))
		case 1:
			return uintptr(unsafe.Pointer(&page[r.IntN(len(page)-4096)]))
		case 2:
			return ^uintptr(r.IntN(4096))
		case 3:
			return uintptr(r.Uint64())
		case 4:
			return uintptr(1) << r.IntN(64)
		}
		return uintptr(r.IntN(1 << 16))
	}
calls:
	for range 2000 {
		for i := range page[:256] {
			page[i] = byte(r.Uint32())
		}
		call := uintptr(r.IntN(470))
		for _, h := range harmful {
			if call == h {
				continue calls
			}
		}
		_, _, _ = syscall.RawSyscall6(call, value(), value(), value(), value(), value(), value())
	}
	return nil
}

// forks makes processes that make processes, and none ends by itself.
func forks([]string) error {
	for i := 0; ; i++ {
		cmd := exec.Command("/proc/self/exe", "forks")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			fmt.Println("refused after", i, err)
			return err
		}
		if i >= 1 {
			_ = cmd.Wait()
		}
	}
}
