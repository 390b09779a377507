package ops

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
)

// Env is what the ops of one build work with. It is filled before the first
// op and not changed after; it is used by pointer only.
type Env struct {
	// Store, Images, Driver and Exec are needed by nearly every op. A build
	// without RUN works without Driver and Exec.
	Store  *store.Store
	Images *image.Images
	Driver snapshot.Driver
	Exec   sandbox.Executor

	// Sink gets what happens after an op's own turn: a layer of a lazy Ref that
	// is downloaded when a later op needs it. Nil discards it.
	Sink progress.Sink

	// Locals are the directories that the build reads, by the name that the
	// definition uses: "context", "dockerfile", or that of a named context.
	Locals map[string]*Local
	// Layouts are OCI image layout directories, by the name that oci-layout://
	// sources use.
	Layouts map[string]string
	// Secrets has the build's secrets; nil is a build without any.
	Secrets Secrets
	// SSH has the build's SSH agents; nil is a build without any.
	SSH SSH
	// GitAuth is the way into one git repository, kept from steps; nil is none.
	GitAuth *GitAuth

	// Platform is that of the machine that builds; the zero value is this one's.
	Platform oci.Platform
	// Emulators says why the machine's emulators for other architectures are of no
	// use to steps; nil, or no error: they are.
	Emulators func(context.Context) error
	// Entitlements are what the user allowed beyond the default:
	// "network.host", "security.insecure".
	Entitlements []string
	// HostGateway is what the host name "host-gateway" of --add-host stands for.
	HostGateway netip.Addr
	// CgroupParent is the cgroup below which steps run that name none.
	CgroupParent string
	// ResolvConf is the /etc/resolv.conf of steps; nil copies the one of den's
	// own surroundings.
	ResolvConf []byte
	// Transport fetches http and git sources; nil is http.DefaultTransport, with
	// the proxy of den's environment.
	Transport http.RoundTripper
	// SourceDateEpoch, where set, bounds the times of files that ops make
	// themselves.
	SourceDateEpoch *time.Time
	// InUserns says that den runs in its own user namespace, where device nodes
	// cannot be made.
	InUserns bool
	// Recorded says that owners in cache mounts are recorded, because this
	// process may not chown. See sys.InodeAttr.
	Recorded bool

	memo memo
}

// GitAuth is an Authorization header for one repository and for submodules of it
// on the same host.
type GitAuth struct{ Remote, Header string }

// Secrets finds secrets by id. BuildKit's session/secrets.SecretStore has the
// same shape. A missing one is an error of class errdefs.ErrNotFound or
// BuildKit's secrets.ErrNotFound.
type Secrets interface {
	GetSecret(ctx context.Context, id string) ([]byte, error)
}

// SSH connects to the agents that the build may use.
type SSH interface {
	// Agent opens a connection that speaks the agent protocol with the agent of
	// that id ("default" when the build names none). An unknown id is an error
	// of class errdefs.ErrNotFound.
	Agent(ctx context.Context, id string) (io.ReadWriteCloser, error)
}

// memo keeps what several steps of one build would otherwise compute again.
type memo struct {
	mu      sync.Mutex
	entries map[string]*memoEntry
}

type memoEntry struct {
	once  sync.Once
	value any
	err   error
}

// memoise returns what f returned for key the first time. Errors are kept too,
// so f must not depend on a context that only its first caller has.
func memoise[T any](e *Env, key string, f func() (T, error)) (T, error) {
	e.memo.mu.Lock()
	if e.memo.entries == nil {
		e.memo.entries = map[string]*memoEntry{}
	}
	m := e.memo.entries[key]
	if m == nil {
		m = &memoEntry{}
		e.memo.entries[key] = m
	}
	e.memo.mu.Unlock()
	m.once.Do(func() { m.value, m.err = f() })
	v, _ := m.value.(T)
	return v, m.err
}

func (e *Env) sink() progress.Sink {
	if e.Sink == nil {
		return progress.Discard
	}
	return e.Sink
}

// allows says whether the user granted the entitlement.
func (e *Env) allows(entitlement string) bool {
	for _, have := range e.Entitlements {
		if have == entitlement {
			return true
		}
	}
	return false
}
