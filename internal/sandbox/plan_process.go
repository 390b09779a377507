package sandbox

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// process is what follows the file system: names, limits, the rights of the
// payload, and exec.
func (p *program) process() error {
	p.names()
	if p.fresh(specs.NetworkNamespace) {
		p.loopback()
	}
	if err := p.rlimits(); err != nil {
		return err
	}
	p.cwd()
	p.askForHome()
	if uid := p.spec.Process.User.UID; uid != 0 {
		// A pipe that den made belongs to den's user, and /dev/stdout opens it anew.
		for i, own := range p.o.ownStdio {
			if own && !p.spec.Process.Terminal {
				p.Do(unix.SYS_FCHOWN, sys.Int(i), sys.Int(uid), sys.Int(-1)).MayFail()
			}
		}
	}
	nnp := p.spec.Process.NoNewPrivileges
	if !nnp {
		p.seccomp()
	}
	if err := p.credentials(); err != nil {
		return err
	}
	if nnp {
		p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_NO_NEW_PRIVS), sys.Int(1), sys.Int(0), sys.Int(0), sys.Int(0)).Note("no_new_privs")
		p.seccomp()
	}
	umask := uint32(0o022)
	if u := p.spec.Process.User.Umask; u != nil {
		umask = *u
	}
	p.Do(unix.SYS_UMASK, sys.Int(umask))
	if p.r.Init {
		p.init()
	}
	// Changing the user cleared it.
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_PDEATHSIG), sys.Int(int(unix.SIGKILL))).MayFail()
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(3), sys.Int(^uint32(0)), sys.Int(unix.CLOSE_RANGE_CLOEXEC))
	p.signalMask(0)
	p.execute()
	return nil
}

func (p *program) names() {
	if !p.fresh(specs.UTSNamespace) {
		return
	}
	if h := p.spec.Hostname; h != "" {
		p.Do(unix.SYS_SETHOSTNAME, p.Str(h), sys.Int(len(h))).Note("hostname " + h)
	}
	if d := p.spec.Domainname; d != "" {
		p.Do(unix.SYS_SETDOMAINNAME, p.Str(d), sys.Int(len(d))).Note("domain name " + d)
	}
}

// loopback switches lo on; the kernel then gives it its addresses.
func (p *program) loopback() {
	if !p.o.caps.Has(unix.CAP_NET_ADMIN) {
		p.warn("network none has no loopback here: that needs CAP_NET_ADMIN (docker run --cap-add NET_ADMIN)")
	}
	fd := p.Cell(0)
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	binary.LittleEndian.PutUint16(ifreq[16:], unix.IFF_UP|unix.IFF_RUNNING)
	p.Do(unix.SYS_SOCKET, sys.Int(unix.AF_INET), sys.Int(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), sys.Int(0)).To(fd).MayFail()
	p.Do(unix.SYS_IOCTL, fd.Value(), sys.Int(unix.SIOCSIFFLAGS), p.Bytes(ifreq)).MayFail()
	p.Close(fd)
}

var rlimitNumbers = map[string]int{
	"CPU": unix.RLIMIT_CPU, "FSIZE": unix.RLIMIT_FSIZE, "DATA": unix.RLIMIT_DATA, "STACK": unix.RLIMIT_STACK,
	"CORE": unix.RLIMIT_CORE, "RSS": unix.RLIMIT_RSS, "NPROC": unix.RLIMIT_NPROC, "NOFILE": unix.RLIMIT_NOFILE,
	"MEMLOCK": unix.RLIMIT_MEMLOCK, "AS": unix.RLIMIT_AS, "LOCKS": unix.RLIMIT_LOCKS, "SIGPENDING": unix.RLIMIT_SIGPENDING,
	"MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE, "RTPRIO": unix.RLIMIT_RTPRIO, "RTTIME": unix.RLIMIT_RTTIME,
}

// rlimits sets limits; one that den cannot raise becomes what it can be, and is reported.
func (p *program) rlimits() error {
	for _, l := range p.spec.Process.Rlimits {
		nr, err := RlimitNumber(l)
		if err != nil {
			return err
		}
		if cur, err := p.o.rlimit(nr); err == nil && l.Hard > cur.Max && !p.o.caps.Has(unix.CAP_SYS_RESOURCE) {
			p.warn(fmt.Sprintf("rlimit %s stays at %d: raising it to %d needs CAP_SYS_RESOURCE", l.Type, cur.Max, l.Hard))
			l.Hard, l.Soft = cur.Max, min(l.Soft, cur.Max)
		}
		p.Do(unix.SYS_PRLIMIT64, sys.Int(0), sys.Int(nr), p.Words(sys.Int(l.Soft), sys.Int(l.Hard)), sys.Int(0)).MayFail()
	}
	return nil
}

func (p *program) warn(s string) {
	if p.r.Warn != nil {
		p.r.Warn(s)
	}
}

// cwd enters the working directory, which den makes for a new sandbox if it is missing. It is opened
// inside the root and without magic links (CVE-2024-21626).
func (p *program) cwd() {
	dir := p.spec.Process.Cwd
	if dir == "" {
		dir = "/"
	}
	have := p.Label()
	fd := p.Cell(0)
	note := "working directory " + dir
	if p.o.join == nil {
		p.OpenInRoot(sys.Int(unix.AT_FDCWD), inside(dir), unix.O_PATH|unix.O_DIRECTORY, fd).MayFail().Pos(have)
		p.ask(askCwd)
	}
	open := p.OpenInRoot(sys.Int(unix.AT_FDCWD), inside(dir), unix.O_PATH|unix.O_DIRECTORY, fd).Note(note)
	if p.o.join != nil {
		p.exec[open] = stageCwd
	}
	p.Mark(have)
	p.Do(unix.SYS_FCHDIR, fd.Value()).Note(note)
	p.Close(fd)
}

// maxHome bounds the path of a home directory.
const maxHome = 4000

// askForHome sets HOME from the sandbox's own /etc/passwd where the request does not, as
// runc does; without it many a build tool has nowhere to put its cache.
func (p *program) askForHome() {
	if slices.ContainsFunc(p.spec.Process.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") && e != "HOME=" }) {
		return
	}
	const name = "HOME="
	gone, ok := p.Label(), p.Label()
	p.home = p.Bytes(append([]byte(name), make([]byte, maxHome+1)...))
	p.Do(unix.SYS_WRITE, sys.Int(fdProgress), p.Words(sys.Int(0), sys.Int(askHome)), sys.Int(recordLength))
	p.Do(unix.SYS_READ, sys.Int(fdSync), p.home.Plus(len(name)), sys.Int(maxHome)).Pos(ok).Err(gone)
	p.Mark(gone)
	p.Exit(125)
	p.Mark(ok)
}

// seccomp loads the filter, if there is one.
func (p *program) seccomp() {
	if p.o.filter == nil {
		return
	}
	var flags uint
	for _, f := range p.spec.Linux.Seccomp.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		}
	}
	prog := p.Words(sys.Int(len(p.o.filter)/8), p.Bytes(p.o.filter)) // struct sock_fprog
	p.Do(unix.SYS_SECCOMP, sys.Int(unix.SECCOMP_SET_MODE_FILTER), sys.Int(flags), prog).Note("seccomp filter")
}

// credentials changes to the payload's user and takes what it may not have.
func (p *program) credentials() error {
	u := p.spec.Process.User
	want := p.spec.Process.Capabilities
	if want == nil {
		want = &specs.LinuxCapabilities{}
	}
	sets := make([]sys.CapSet, 5)
	for i, names := range [][]string{want.Bounding, want.Permitted, want.Effective, want.Inheritable, want.Ambient} {
		s, err := sys.ParseCaps(names)
		if err != nil {
			return err
		}
		sets[i] = s & p.o.caps
	}
	bounding, permitted, inheritable, ambient := sets[0], sets[1], sets[3]&sets[0], sets[4]
	effective := sets[2] & permitted

	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_KEEPCAPS), sys.Int(1)).Note("keep capabilities")
	for n := range 64 {
		if p.o.bounding.Has(n) && !bounding.Has(n) {
			p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_CAPBSET_DROP), sys.Int(n)).Note("drop from the bounding set")
		}
	}
	groups := make([]byte, 0, 4*len(u.AdditionalGids))
	for _, g := range u.AdditionalGids {
		groups = binary.LittleEndian.AppendUint32(groups, g)
	}
	for _, g := range append(slices.Clone(u.AdditionalGids), u.GID) {
		if !p.o.gidMapped(g) {
			return fmt.Errorf("group %d: not one of the ids of this user namespace: give the user a larger range in /etc/subgid", g)
		}
	}
	if !p.o.uidMapped(u.UID) {
		return fmt.Errorf("user %d: not one of the ids of this user namespace: give the user a larger range in /etc/subuid", u.UID)
	}
	p.Do(unix.SYS_SETGROUPS, sys.Int(len(u.AdditionalGids)), p.Bytes(groups)).Note("additional groups")
	p.Do(unix.SYS_SETRESGID, sys.Int(u.GID), sys.Int(u.GID), sys.Int(u.GID)).Note(fmt.Sprintf("group %d", u.GID))
	p.Do(unix.SYS_SETRESUID, sys.Int(u.UID), sys.Int(u.UID), sys.Int(u.UID)).Note(fmt.Sprintf("user %d", u.UID))
	header, data := p.CapSetArgs(effective, permitted, inheritable)
	p.Do(unix.SYS_CAPSET, header, data).Note("capabilities")
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_KEEPCAPS), sys.Int(0)).Note("keep capabilities")
	for n := range 64 {
		if ambient.Has(n) {
			p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_CAP_AMBIENT), sys.Int(unix.PR_CAP_AMBIENT_RAISE), sys.Int(n), sys.Int(0), sys.Int(0)).MayFail()
		}
	}
	return nil
}

// init splits the process: process 1 stays and reaps, its child goes on to exec.
// It is what docker-init is for, without a second binary in the image.
func (p *program) init() {
	payload, loop, forward, child, reap, check, done := p.Label(), p.Label(), p.Label(), p.Label(), p.Label(), p.Label(), p.Label()
	exit := p.Words(sys.Int(uint64(recordInit)), sys.Int(0))
	status := exit.Part(8)
	pid, other, chld := p.Cell(0), p.Cell(0), p.Cell(0)
	// Before there is a payload to look. It inherits the first and the last until it executes.
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_NAME), p.Str("den-init")).MayFail()
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_CHILD_SUBREAPER), sys.Int(1)).MayFail() // where it is not process 1
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_DUMPABLE), sys.Int(0)).MayFail()
	p.Do(unix.SYS_CLONE, sys.Int(int(unix.SIGCHLD)), sys.Int(0), sys.Int(0), sys.Int(0), sys.Int(0)).To(pid).Zero(payload).Note("start init")
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdProgress), sys.Int(fdSend), sys.Int(0)).MayFail()
	const sigchld = uint64(1) << (unix.SIGCHLD - 1)
	flags := sys.Int(unix.SFD_NONBLOCK | unix.SFD_CLOEXEC)
	p.Do(unix.SYS_SIGNALFD4, sys.Int(-1), p.Words(sys.Int(sigchld)), sys.Int(8), flags).To(chld).MayFail()
	p.Do(unix.SYS_SIGNALFD4, sys.Int(-1), p.Words(sys.Int(^sigchld)), sys.Int(8), flags).To(other).MayFail()
	// Descriptors 0 to 2 and fdInit are open and 3 to 5 were closed just now.
	polls := p.Words(sys.Int(uint64(3|unix.POLLIN<<32)), sys.Int(uint64(4|unix.POLLIN<<32)))
	info := p.Buffer(128)

	p.Mark(loop)
	p.Do(unix.SYS_PPOLL, polls, sys.Int(2), sys.Int(0), sys.Int(0), sys.Int(8)).MayFail()
	p.Mark(forward)
	p.Do(unix.SYS_READ, other.Value(), info, sys.Int(128)).Err(child).Zero(child)
	p.Do(unix.SYS_KILL, pid.Value(), info.Part(0).Value()).MayFail()
	p.Goto(forward)
	p.Mark(child)
	p.Do(unix.SYS_READ, chld.Value(), info, sys.Int(128)).MayFail()
	p.Mark(reap)
	p.Do(unix.SYS_WAIT4, sys.Int(-1), status.Addr(), sys.Int(unix.WNOHANG), sys.Int(0)).Zero(loop).Pos(check).Err(done)
	p.Mark(check)
	// Whose status it was: the payload's if it is gone now.
	p.Do(unix.SYS_KILL, pid.Value(), sys.Int(0)).Zero(reap).Err(done)
	p.Mark(done)
	p.Do(unix.SYS_WRITE, sys.Int(fdInit), exit, sys.Int(recordLength)).MayFail()
	p.Exit(0)

	p.Mark(payload)
	// A group of its own, or the terminal's signals come twice.
	group := p.Cell(0)
	p.Do(unix.SYS_SETPGID, sys.Int(0), sys.Int(0)).MayFail()
	if p.spec.Process.Terminal {
		p.Do(unix.SYS_GETPID).To(group)
		p.Do(unix.SYS_IOCTL, sys.Int(0), sys.Int(unix.TIOCSPGRP), group.Addr()).MayFail()
	}
}

// execute runs the program as the shell would find it: the first in PATH that
// is a file and executable. A name with a slash is taken as it is.
func (p *program) execute() {
	name := p.spec.Process.Args[0]
	env := make([]sys.Arg, 0, len(p.spec.Process.Env)+2)
	for _, e := range p.spec.Process.Env {
		if e != "HOME=" {
			env = append(env, p.Str(e))
		}
	}
	if p.home != (sys.Arg{}) {
		env = append(env, p.home)
	}
	argv, envp := p.Strs(p.spec.Process.Args), p.Words(append(env, sys.Int(0))...)
	at := sys.Int(unix.AT_FDCWD)
	try := func(file string, next sys.Label) {
		path := p.Str(file)
		find := p.Do(unix.SYS_FACCESSAT2, at, path, sys.Int(unix.X_OK), sys.Int(unix.AT_EACCESS)).Note(file)
		p.exec[find] = stageFind
		run := p.Label()
		dir := p.Do(unix.SYS_OPENAT, at, path, sys.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).Err(run)
		if next != 0 {
			find.Err(next)
			dir.Pos(next)
		} else {
			// Opening it to execute is what a directory refuses.
			p.exec[p.Do(unix.SYS_OPENAT, at, path, sys.Int(unix.O_WRONLY|unix.O_CLOEXEC)).Note(file)] = stageIsDir
		}
		p.Mark(run)
		p.exec[p.Do(unix.SYS_EXECVE, path, argv, envp).Note(file)] = stageExec
	}
	if strings.Contains(name, "/") {
		try(name, 0)
		return
	}
	for _, dir := range SearchPath(p.spec.Process.Env) {
		next := p.Label()
		try(path.Join(dir, name), next)
		p.Mark(next)
	}
	p.Do(unix.SYS_WRITE, sys.Int(fdProgress), p.Words(sys.Int(0), sys.Int(sayNotInPath)), sys.Int(recordLength)).MayFail()
	p.Exit(127)
}

// SearchPath is the payload's own PATH; the last one counts. Relative directories are
// left out, as os/exec does.
func SearchPath(env []string) []string {
	var dirs []string
	for _, e := range slices.Backward(env) {
		v, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(v, ":") {
			if path.IsAbs(dir) {
				dirs = append(dirs, dir)
			}
		}
		break
	}
	return dirs
}
