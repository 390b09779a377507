package sandboxtest

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// joins has one sandbox reach another's server on the loopback device, for as long as that runs.
func joins(b *Bench) {
	r := b.Request("echo up; nc -l -p 5432 </etc/passwd; echo ready; read x")
	r.Network = sandbox.NetworkNone
	in, typed, err := os.Pipe()
	b.must(err)
	defer typed.Close()
	r.Stdin = in
	first, lines := b.start(b.Context(), r)
	in.Close()
	b.want(lines.next(), "up\n")
	other := New(b.TB, b.Exec)
	q := other.Request("until nc 127.0.0.1 5432 </dev/null 2>/dev/null; do sleep 0.05; done; ip link | grep -c ether; echo x >/written; exit 3")
	q.Network, q.NetworkOf = sandbox.NetworkNone, first
	out, exit := other.Run(q)
	b.want(out, "root:x:0:0::/root:/bin/sh\n0\n")
	if exit.Code != 3 {
		b.Errorf("exit is %+v, want 3", exit)
	}
	b.want(other.Changes(), "written")
	b.want(lines.next(), "ready\n")
	b.must(first.Signal(unix.SIGKILL))
	if exit, err := first.Wait(b.Context()); err != nil || exit.Signal != unix.SIGKILL {
		b.Errorf("%+v, %v", exit, err)
	}
	b.Renew()
	if _, _, err := other.Try(q); !errors.Is(err, os.ErrProcessDone) {
		b.Errorf("to join one that has ended: %v", err)
	}
}
