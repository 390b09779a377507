package dockerd

import (
	"slices"
	"strings"
)

// The names that docker:dind's image has for its parts.
const (
	Daemon     = "dockerd"
	Entrypoint = "dockerd-entrypoint.sh"
	Client     = "docker-entrypoint.sh"
	Wrapper    = "dind"
	Init       = "docker-init"
)

// CertDirEnv names the directory of certificates; empty is plain HTTP.
const CertDirEnv = "DOCKER_TLS_CERTDIR"

// A Surrounding is what an entry point looks at.
type Surrounding struct {
	// Env reads the environment.
	Env func(string) string
	// SocketDir says whether a file can be made in the directory of a socket.
	SocketDir func(dir string) bool
	// Socket says whether there is a socket.
	Socket func(path string) bool
	// UID is the user's before den entered a user namespace.
	UID int
	// Commands are docker's, for arguments without a program.
	Commands []string
}

// A Start is what an entry point starts: Program with Args, and Env ("NAME=value") besides its own.
type Start struct {
	Program string
	Args    []string
	Env     []string
	// CertDir, if not empty, is where certificates are made before TLS is served.
	CertDir string
	// Refuse says that a plain port is there for health checks and answers every request with a
	// sentence: the others are served by TLS.
	Refuse string
}

// Begin is what the program name of docker:dind's image does with args.
func Begin(name string, args []string, s Surrounding) Start {
	switch name {
	case Entrypoint:
		return s.daemon(args)
	case Client:
		return s.client(args)
	case Wrapper:
		if len(args) > 0 {
			return Start{Program: args[0], Args: args[1:]}
		}
		return Start{Program: Daemon}
	}
	return Start{Program: name, Args: args}
}

// daemon is dockerd-entrypoint.sh: without a program its arguments are dockerd's.
func (s Surrounding) daemon(args []string) Start {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		if args[0] == Daemon {
			// As it is: GitHub's runners name the socket that they want.
			return Start{Program: Daemon, Args: args[1:]}
		}
		return s.client(args)
	}
	start := Start{Program: Daemon}
	add := func(host string) { start.Args = append(start.Args, "--host="+host) }
	add(s.socket())
	if start.CertDir = s.Env(CertDirEnv); start.CertDir != "" {
		add("tcp://0.0.0.0:2376")
		start.Args = append(start.Args, "--tlsverify")
		start.Refuse = "tcp://0.0.0.0:2375"
	} else {
		add("tcp://0.0.0.0:2375")
		start.Args = append(start.Args, "--tls=false")
	}
	start.Args = append(start.Args, args...)
	return start
}

// socket is where the entry point listens: DOCKER_HOST where it names a unix socket. A tcp://
// one is a client's that has leaked in, as the variables of a GitLab job do.
func (s Surrounding) socket() string {
	if host := s.Env("DOCKER_HOST"); strings.HasPrefix(host, "unix://") {
		return host
	}
	return "unix://" + DefaultSocket(s.UID, s.Env, s.SocketDir)
}

// systemSocket is docker's for everybody.
const systemSocket = "/var/run/docker.sock"

// DefaultSocket is where a daemon of user uid listens: root, and who may write there, at
// docker's own place, others in their own directory of sockets, or home.
func DefaultSocket(uid int, env func(string) string, writable func(dir string) bool) string {
	if uid == 0 || writable("/var/run") {
		return systemSocket
	}
	if dir := env("XDG_RUNTIME_DIR"); dir != "" {
		return strings.TrimSuffix(dir, "/") + "/docker.sock"
	}
	if home := env("HOME"); home != "" && home != "/" {
		return strings.TrimSuffix(home, "/") + "/.docker/run/docker.sock"
	}
	return "/tmp/docker.sock"
}

// client is docker-entrypoint.sh: it runs docker, or any program, with the daemon's address in the environment.
func (s Surrounding) client(args []string) Start {
	start := Start{Program: "sh"}
	switch {
	case len(args) > 0 && (strings.HasPrefix(args[0], "-") || slices.Contains(s.Commands, args[0])):
		start = Start{Program: "docker", Args: args}
	case len(args) > 0:
		start = Start{Program: args[0], Args: args[1:]}
	}
	if s.Env("DOCKER_HOST") != "" {
		return start
	}
	for _, path := range []string{systemSocket, strings.TrimSuffix(s.Env("XDG_RUNTIME_DIR"), "/") + "/docker.sock"} {
		if s.Socket(path) {
			start.Env = append(start.Env, "DOCKER_HOST=unix://"+path)
			return start
		}
	}
	if dir := s.Env(CertDirEnv); s.Env("DOCKER_TLS_VERIFY") != "" || dir != "" && s.Socket(dir+"/client/cert.pem") {
		start.Env = append(start.Env, "DOCKER_HOST=tcp://docker:2376", "DOCKER_TLS_VERIFY=1")
		if dir != "" && s.Env("DOCKER_CERT_PATH") == "" {
			start.Env = append(start.Env, "DOCKER_CERT_PATH="+dir+"/client")
		}
		return start
	}
	start.Env = append(start.Env, "DOCKER_HOST=tcp://docker:2375")
	return start
}

// systemData is docker's for everybody.
const systemData = "/var/lib/docker"

// DefaultDataRoot is where the dockerd of user uid keeps its things: root, and who may write there
// because a pod has a volume there, at docker's own place, others in their own directories.
func DefaultDataRoot(uid int, env func(string) string, writable func(dir string) bool) string {
	if uid == 0 || writable(systemData) {
		return systemData
	}
	if dir := env("XDG_DATA_HOME"); dir != "" {
		return strings.TrimSuffix(dir, "/") + "/docker"
	}
	return strings.TrimSuffix(env("HOME"), "/") + "/.local/share/docker"
}
