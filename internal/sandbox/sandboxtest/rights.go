package sandboxtest

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

func inherited(b *Bench) {
	secret, err := os.Open(b.Lower)
	b.must(err)
	defer secret.Close()
	_, err = unix.FcntlInt(secret.Fd(), unix.F_SETFD, 0) // not even one that is not close-on-exec
	b.must(err)
	r := b.Request("ls /proc/self/fd | wc -l; cat /proc/self/environ | tr '\\0' '\\n' | grep -c DEN_")
	r.Hold = []*os.File{secret}
	out, _ := b.Run(r)
	if lines := strings.Fields(out); len(lines) != 2 || lines[0] != "4" || // with the one that ls reads
		lines[1] != "0" {
		b.Errorf("descriptors and variables of den: %q", out)
	}
	if !sharesPids(b.Exec) {
		return
	}
	out, _ = b.Run(b.Request(fmt.Sprintf("cd /proc/%d && cat environ mem maps fd/* 2>/dev/null | head -c 10; ls root/ 2>/dev/null; for f in fd/*; do readlink $f; done; true", os.Getpid())))
	b.want(out, "")
}

func user(b *Bench) {
	umask := uint32(0o077)
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "id -u; id -g; id -G; umask; echo x >/dev/stdout; touch /tmp/f; stat -c %a /tmp/f"},
		UID:  1000, GID: 1001, Groups: []uint32{5, 1002}, Umask: &umask,
	}))
	b.want(out, "1000\n1001\n1001 5 1002\n0077\nx\n600\n")
	out, _ = b.Run(b.Request("id -u; umask"))
	b.want(out, "0\n0022\n")
}

func capabilities(b *Bench) {
	out, _ := b.Run(b.Request("grep -e CapEff -e CapBnd /proc/self/status | cut -f2"))
	b.want(out, "00000000a80425fb\n00000000a80425fb\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", "grep -e CapEff -e CapPrm /proc/self/status | cut -f2"}, UID: 5, GID: 5}))
	b.want(out, "0000000000000000\n0000000000000000\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "grep -e CapBnd /proc/self/status | cut -f2"}, CapDrop: []string{"ALL"}, CapAdd: []string{"net_raw", "CAP_CHOWN"},
	}))
	b.want(out, "0000000000002001\n")
}

func noNewPrivileges(b *Bench) {
	const script = "grep -e NoNewPrivs -e ^Seccomp: /proc/self/status | cut -f2"
	out, _ := b.Run(b.Request(script))
	b.want(out, "0\n"+innerFilter(b)+"\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", script}, NoNewPrivileges: true, UID: 7}))
	b.want(out, "1\n"+innerFilter(b)+"\n")
}

func seccompFilter(b *Bench) {
	// What no capability is needed for, and the filter forbids.
	const script = "grep ^Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null && echo done"
	out, _ := b.Run(b.Request(script))
	b.want(out, innerFilter(b)+"\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", script}, NoSeccomp: true}))
	b.want(out, outerFilter(b)+"\ndone\n")
}

// innerFilter is the filter mode that a payload sees with Docker's profile. A kernel of den's own needs no filter for it.
func innerFilter(b *Bench) string {
	if ownKernel(b.Exec) {
		return "0"
	}
	return "2"
}

// outerFilter is the filter mode that den itself runs in, and all that it
// starts on the same kernel.
func outerFilter(b *Bench) string {
	if ownKernel(b.Exec) {
		return "0"
	}
	text, err := os.ReadFile("/proc/self/status")
	b.must(err)
	for line := range strings.Lines(string(text)) {
		if mode, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			return strings.TrimSpace(mode)
		}
	}
	return "0"
}

func devices(b *Bench) {
	out, _ := b.Run(b.Request(`echo gone >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
ls -d /dev/pts/ptmx /dev/shm /dev/fd /dev/stdin /dev/ptmx /dev/full >/dev/null && echo all; echo x >/dev/fd/1
mknod /tmp/null c 1 3 2>/dev/null; (echo >/tmp/null) 2>/dev/null; rm -f /tmp/null
mknod /dev/sda b 8 0 2>/dev/null; dd if=/dev/sda of=/dev/null count=1 2>/dev/null || echo no disk; rm -f /dev/sda
touch /dev/shm/x && echo shm`))
	b.want(out, "3\n3\nall\nx\nno disk\nshm\n")
}

func protected(b *Bench) {
	out, _ := b.Run(b.Request(`for f in /proc/kcore /proc/keys /proc/timer_list; do [ -e $f ] && head -c1 $f | wc -c; done | sort -u
(echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo ro; (echo h >/proc/sysrq-trigger) 2>/dev/null || echo ro
[ -z "$(ls -A /sys/firmware 2>/dev/null)" ] && echo masked; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro`))
	if ownKernel(b.Exec) { // which has none of the files to mask
		out = "0\n" + out
	}
	b.want(out, "0\nro\nro\nmasked\nro\n")
}

func insecure(b *Bench) {
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{
		Args:     []string{"sh", "-c", "grep ^Seccomp: /proc/self/status | cut -f2; mkdir /m && mount -t tmpfs none /m && echo mounted"},
		Insecure: true,
	}))
	b.want(out, outerFilter(b)+"\nmounted\n")
}
