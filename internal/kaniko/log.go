package kaniko

import (
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"den/internal/progress"
)

// LogOptions are --verbosity, --log-format and --log-timestamp.
type LogOptions struct {
	Verbosity, Format string
	Timestamp         bool
}

// NewLog writes lines as kaniko's do: they are logrus's.
func NewLog(w io.Writer, o LogOptions) (*logrus.Logger, error) {
	level, err := logrus.ParseLevel(o.Verbosity)
	if err != nil {
		return nil, invalid("parsing log level: %q is not one, want trace, debug, info, warn, error, fatal or panic", o.Verbosity)
	}
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(level)
	switch o.Format {
	case "text":
		log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: o.Timestamp})
	case "color":
		log.SetFormatter(&logrus.TextFormatter{ForceColors: true, FullTimestamp: o.Timestamp})
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, invalid("not a valid log format: %q, want text, color or json", o.Format)
	}
	return log, nil
}

// A Progress shows a build in kaniko's way: a line for each step, and what steps
// print as they print it.
type Progress struct {
	log      *logrus.Logger
	out, err io.Writer

	mu    sync.Mutex
	steps map[digest.Digest]string // what was said of each
}

// NewProgress shows steps on log and their output on stdout and stderr.
func NewProgress(log *logrus.Logger, stdout, stderr io.Writer) *Progress {
	return &Progress{log: log, out: stdout, err: stderr, steps: map[digest.Digest]string{}}
}

// Event takes one event.
func (p *Progress) Event(e progress.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case e.Vertex != nil:
		p.vertex(e.Vertex)
	case e.Log != nil:
		to := p.out
		if e.Log.Stream == 2 {
			to = p.err
		}
		// What cannot be shown is dropped.
		_, _ = to.Write(e.Log.Data)
	case e.Warning != nil:
		p.log.Warn(string(e.Warning.Short))
	case e.Status != nil && e.Status.Completed != nil:
		p.log.Debug(e.Status.Name)
	}
}

func (p *Progress) vertex(v *progress.Vertex) {
	state := ""
	switch {
	case v.Error != "":
		state = "failed"
	case v.Cached:
		state = "cached"
	case v.Started != nil:
		state = "started"
	}
	// Steps of the Dockerfile are news, what den does for itself is detail.
	say := p.log.Debug
	if strings.HasPrefix(v.Name, "[") && !strings.HasPrefix(v.Name, "[internal]") || strings.HasPrefix(v.Name, "exporting ") {
		say = p.log.Info
	}
	if state == "" || p.steps[v.Digest] == state {
		return
	}
	p.steps[v.Digest] = state
	switch state {
	case "cached":
		say("Using cached layer for " + v.Name)
	case "started":
		say(v.Name)
	default:
		p.log.Debug(v.Name + ": " + v.Error)
	}
}
