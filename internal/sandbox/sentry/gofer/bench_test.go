package gofer

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/runsc/fsgofer"

	"den/internal/sys"
)

// against runs a benchmark with each way to keep owners and with gVisor's own
// gofer, which keeps none that it may not set.
func against(b *testing.B, bench func(b *testing.B, c *client)) {
	b.Run("recorded", func(b *testing.B) { bench(b, mount(b, xattrDir(b), Options{Owners: Recorded})) })
	if sys.MayChown() {
		b.Run("real", func(b *testing.B) { bench(b, mount(b, xattrDir(b), Options{Owners: Real})) })
		b.Run("fsgofer", func(b *testing.B) { bench(b, mountTheirs(b, xattrDir(b))) })
	}
}

// mountTheirs serves dir by gVisor's gofer.
func mountTheirs(b *testing.B, dir string) *client {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	sock, err := unet.NewSocket(fds[0])
	if err != nil {
		b.Fatal(err)
	}
	if err := fsgofer.OpenProcSelfFD("/proc/self/fd"); err != nil {
		b.Fatal(err)
	}
	server := lisafs.NewServer()
	conn, err := server.CreateConnection(sock, dir, fsgofer.ConnectionOpts(false), fsgofer.NewConnectionImpl(&fsgofer.Config{}))
	if err != nil {
		b.Fatal(err)
	}
	server.StartConnection(conn)
	c := connect(b, fds[1])
	b.Cleanup(func() { c.c.Close(); server.Wait() })
	return c
}

// BenchmarkCreate makes 500 files, as root and as another user, and removes them.
func BenchmarkCreate(b *testing.B) {
	for owner, id := range map[string]uint32{"root": 0, "other": 999} {
		b.Run(owner, func(b *testing.B) {
			against(b, func(b *testing.B, c *client) {
				for b.Loop() {
					for i := range 500 {
						name := fmt.Sprint(i)
						f := c.create(c.root, name, "", 0o640, id, id)
						f.Close(c.ctx, false)
					}
					for i := range 500 {
						c.ok("unlink", c.root.UnlinkAt(c.ctx, fmt.Sprint(i), 0))
					}
				}
			})
		})
	}
}

// BenchmarkFind lists 80 directories of 100 files and looks at each file.
func BenchmarkFind(b *testing.B) {
	against(b, func(b *testing.B, c *client) {
		for d := range 80 {
			dir, _ := c.inode(c.root.MkdirAt(c.ctx, fmt.Sprint(d), 0o755, 0, 0))
			for f := range 100 {
				h := c.create(dir, fmt.Sprint(f), "", 0o644, uint32(f%2)*999, 0)
				h.Close(c.ctx, false)
			}
			dir.Close(c.ctx, true)
		}
		b.ResetTimer()
		for b.Loop() {
			for d := range 80 {
				dir, _ := c.walk(fmt.Sprint(d))
				for name := range c.list(dir) {
					stats, err := dir.WalkStat(c.ctx, []string{name})
					if err != nil || len(stats) != 1 {
						b.Fatal(name, err)
					}
				}
				dir.Close(c.ctx, false)
			}
		}
	})
}

// BenchmarkTar walks to 1000 small files, opens and reads each.
func BenchmarkTar(b *testing.B) {
	against(b, func(b *testing.B, c *client) {
		for i := range 1000 {
			f := c.create(c.root, fmt.Sprint(i), "some content", 0o644, 999, 999)
			f.Close(c.ctx, false)
		}
		b.ResetTimer()
		for b.Loop() {
			for i := range 1000 {
				f, _ := c.walk(fmt.Sprint(i))
				if c.read(f) != "some content" {
					b.Fatal("other content")
				}
				f.Close(c.ctx, false)
			}
		}
	})
}
