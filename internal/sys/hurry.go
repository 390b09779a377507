package sys

import "golang.org/x/sys/unix"

// hurriedSliceNanos is the shortest slice that the scheduler takes.
const hurriedSliceNanos = 100_000

// HurryThread has the kernel run the calling thread soon after it wakes, which must be
// locked to its goroutine: a thread that asks for a short slice has an early deadline (EEVDF,
// Linux 6.12). It needs no right, and is the wish that it is: older kernels do not know it.
func HurryThread() {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return
	}
	attr.Runtime = hurriedSliceNanos
	_ = unix.SchedSetAttr(0, attr, 0)
}
