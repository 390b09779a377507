package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A publisher has a server behind a published port.
type publisher struct {
	name string
	pid  int // of a process in the network namespace that has the port
}

// BenchmarkPublishedPorts measures what a published port costs, taking turns: dockerd's bridge (docker-proxy for who
// comes from the loopback device, rules of the kernel for others), den on each rung, pasta and slirp4netns. It prints medians: MiB/s
// towards the container and from it, microseconds of an exchange, and of a connection with one exchange.
//
//	go test -run '^$' -bench PublishedPorts -benchtime 5x
func BenchmarkPublishedPorts(b *testing.B) {
	needRoot(b)
	need(b, "ip", "nsenter")
	elsewhere := newNamespace(b)
	var all []publisher
	for _, e := range []*engine{newDockerd(b), newDen(b).serve("privileged"), newPlainDen(b).serve("userns"), newSentryDen(b).serve("sentry")} {
		e.must(b, "docker run -d --name traffic -p 5201:5201 small toolbox traffic serve 5201")
		b.Cleanup(func() { e.sh(b, "docker rm -f traffic") })
		wire(b, len(all), e.pid, elsewhere)
		all = append(all, publisher{e.name, e.pid})
	}
	for _, program := range []struct{ name, script string }{{"pasta", pastaServes}, {"slirp4netns", slirpServes}} {
		pid := newNamespace(b)
		wire(b, len(all), pid, elsewhere)
		if serveAround(b, pid, program.name, program.script) {
			all = append(all, publisher{program.name, pid})
		}
	}
	for _, from := range []string{"loopback", "elsewhere"} {
		b.Run(from, func(b *testing.B) {
			took := map[string]*[4][]float64{}
			for range b.N {
				for i, p := range all {
					pid, at := p.pid, "127.0.0.1"
					if from == "elsewhere" {
						pid, at = elsewhere, fmt.Sprintf("10.200.%d.1", i)
					}
					if took[p.name] == nil {
						took[p.name] = &[4][]float64{}
					}
					four, err := load(b, pid, at+":5201")
					if err != nil { // what breaks connections off has no figures of that round
						b.Logf("%s: %v", p.name, err)
						continue
					}
					for j, v := range four {
						took[p.name][j] = append(took[p.name][j], v)
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for _, p := range all {
				if len(took[p.name][0]) == 0 {
					continue
				}
				for j, unit := range []string{"up-MiB/s", "down-MiB/s", "trip-us", "call-us"} {
					b.ReportMetric(median(took[p.name][j]), p.name+"-"+unit)
				}
			}
		})
	}
}

// load is what toolbox traffic measures from the network namespace of a process.
func load(t testing.TB, pid int, address string) (four [4]float64, err error) {
	t.Helper()
	out, err := output(inNamespace(pid, filepath.Join(env.cache, "toolbox"), "traffic", "load", address, "512", "2000"))
	if err != nil {
		return four, err
	}
	if n, err := fmt.Sscan(out, &four[0], &four[1], &four[2], &four[3]); err != nil {
		t.Fatalf("traffic says %q: %d figures, %v", out, n, err)
	}
	return four, nil
}

// inNamespace is a command in the network namespace of a process.
func inNamespace(pid int, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--"}, args...)...)
}

// ip is a command of iproute2 that has to succeed.
func ip(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if _, err := output(cmd); err != nil {
		t.Fatal(err)
	}
}

// newNamespace is a process in a network namespace of its own, which ends with the test.
func newNamespace(t testing.TB) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = path
	alone(cmd, nil)
	stop, err := startDaemon(cmd, func() error {
		out, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		if err == nil && strings.TrimSpace(string(out)) != "sleep" {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return cmd.Process.Pid
}

// wire joins two network namespaces: i counts those of elsewhere, which has 10.200.i.2 and reaches 10.200.i.1.
func wire(t testing.TB, i, pid, elsewhere int) {
	t.Helper()
	far := fmt.Sprintf("far%d", i)
	ip(t, exec.Command("ip", "link", "add", "name", "near", "netns", strconv.Itoa(pid), "type", "veth", "peer", "name", far, "netns", strconv.Itoa(elsewhere)))
	for _, end := range []struct {
		pid           int
		name, address string
	}{{pid, "near", fmt.Sprintf("10.200.%d.1/30", i)}, {elsewhere, far, fmt.Sprintf("10.200.%d.2/30", i)}} {
		ip(t, inNamespace(end.pid, "ip", "address", "add", end.address, "dev", end.name))
		ip(t, inNamespace(end.pid, "ip", "link", "set", end.name, "up"))
	}
	ip(t, inNamespace(pid, "ip", "route", "add", "default", "via", fmt.Sprintf("10.200.%d.2", i)))
}

// What publishes port 5201 of a program in a user's namespaces, as scripts: $1 is the toolbox. /dev/net/tun is the user's.
const (
	pastaServes = `exec setpriv --reuid %d --regid %d --clear-groups pasta -f -q --config-net -t 5201 -u none -T none -U none -- %s traffic serve 5201`
	slirpServes = `exec setpriv --reuid %d --regid %d --clear-groups sh -c '
		unshare --user --map-root-user --net %[3]s traffic serve 5201 & server=$!
		until test "$(readlink /proc/$server/ns/net)" != "$(readlink /proc/self/ns/net)"; do sleep 0.1; done
		slirp4netns --configure --mtu 65520 --disable-host-loopback --api-socket api $server tap0 & slirp=$!
		trap "kill $server $slirp" TERM
		until %[3]s traffic ask api "{\"execute\":\"add_hostfwd\",\"arguments\":{\"proto\":\"tcp\",\"host_addr\":\"0.0.0.0\",\"host_port\":5201,\"guest_port\":5201}}"; do sleep 0.1; done
		wait $server'`
)

// serveAround starts one of them in a network namespace, and says whether it is there.
func serveAround(b *testing.B, pid int, program, script string) bool {
	b.Helper()
	u := newPlainDen(b)
	if _, err := exec.LookPath(program); err != nil {
		b.Logf("without %s: it is not installed", program)
		return false
	}
	tun := filepath.Join(u.home, "tun")
	if err := syscall.Mknod(tun, syscall.S_IFCHR|0o666, 10<<8|200); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(tun, 0o666); err != nil {
		b.Fatal(err)
	}
	script = "mount --bind " + tun + " /dev/net/tun; cd " + u.home + "; " + fmt.Sprintf(script, u.cred.Uid, u.cred.Gid, filepath.Join(env.cache, "toolbox"))
	cmd := inNamespace(pid, "unshare", "--mount", "sh", "-c", script)
	stop, err := startDaemon(cmd, func() error {
		_, err := output(inNamespace(pid, filepath.Join(env.cache, "toolbox"), "traffic", "load", "127.0.0.1:5201", "1", "4"))
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(stop)
	return true
}
