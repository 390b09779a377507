package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"den/internal/durable"
	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/store"
)

// A record is what the disk knows of a container: container.json in its
// directory, replaced whole at each change of state.
type record struct {
	V            int               `json:"v"`
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Image        string            `json:"image"`
	ConfigDigest oci.Digest        `json:"configDigest"`
	Command      []string          `json:"command"`
	Labels       map[string]string `json:"labels,omitempty"`
	Remove       bool              `json:"remove,omitempty"`
	TTY          bool              `json:"tty,omitempty"`
	// StopSeconds is how long den stop waits; nil is docker's ten.
	StopSeconds *int `json:"stopSeconds,omitempty"`
	// Volumes are the anonymous ones, which go with the container; Named stay.
	Volumes   []string  `json:"anonymousVolumes,omitempty"`
	Named     []string  `json:"namedVolumes,omitempty"`
	Created   time.Time `json:"created"`
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished,omitzero"`
	State     state     `json:"state"`
	ExitCode  int       `json:"exitCode"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	// Error is why the program could not be started.
	Error string `json:"error,omitempty"`
	// Resident containers are den serve's: they are there, created or ended, without
	// anybody who holds their lock.
	Resident bool `json:"resident,omitempty"`
	// Pid is the first process as den sees it.
	Pid          int `json:"pid,omitempty"`
	RestartCount int `json:"restartCount,omitempty"`
	// Stopped says that a person ended the last run, which unless-stopped heeds.
	Stopped bool    `json:"stopped,omitempty"`
	Health  *Health `json:"health,omitempty"`
	// Uppers are the trees of what the container wrote, in its directory, bottom first.
	Uppers []string `json:"uppers,omitempty"`
}

// state is where a container is in its life. A running one whose directory is
// not locked has lost its den.
type state string

const (
	stateCreated state = "created"
	stateRunning state = "running"
	stateExited  state = "exited"
	// statePaused is a running one that is held.
	statePaused state = "paused"
	// stateRestarting has ended, and will be started again after a while.
	stateRestarting state = "restarting"
	// stateDead is never written: it is what a reader makes of a running
	// container that nobody runs.
	stateDead state = "dead"
)

// recordFile is the record. exitFile gets the exit code, in place: who opened it
// before learns the code even of a container that has removed itself meanwhile.
const (
	recordFile = "container.json"
	exitFile   = "exit-code"
)

// maxRecordBytes bounds what is read of a record.
const maxRecordBytes = 16 << 20

func newRecord(c *container, id, name string) record {
	req := c.request
	return record{
		V: 1, ID: id, Name: name, Image: req.Image, ConfigDigest: c.image.ConfigDigest,
		Command: command(req, c.config), Labels: req.Labels, Remove: req.Remove, TTY: req.TTY,
		StopSeconds: req.StopSeconds, Created: time.Now().UTC(), State: stateCreated,
	}
}

// alive says that the container's program runs, held or not.
func (r *record) alive() bool { return r.State == stateRunning || r.State == statePaused }

// reaps says that the container is to be removed by whoever finds that nobody runs it.
func (r *record) reaps() bool { return r.Remove && (!r.Resident || r.State != stateCreated) }

// patience is how long the program may take to stop.
func (r *record) patience() time.Duration {
	if r.StopSeconds == nil {
		return defaultStop
	}
	return time.Duration(*r.StopSeconds) * time.Second
}

func (r *record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("container %s: %w", r.ID, err)
	}
	if err := durable.WriteFile(filepath.Join(dir, recordFile), b, 0o600); err != nil {
		return fmt.Errorf("container %s: record: %w", r.ID, err)
	}
	return nil
}

func readRecord(dir *store.ContainerDir) (*record, error) {
	b, err := readBounded(filepath.Join(dir.Path(), recordFile), maxRecordBytes)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("container %s: record: %w", dir.ID(), err)
	}
	if r.ID != dir.ID() {
		return nil, fmt.Errorf("container %s: record: it is that of %.80q", dir.ID(), r.ID)
	}
	return &r, nil
}

// started, failed and exited are the transitions of a container's life.
func (c *container) started() error {
	c.record.State, c.record.Started = stateRunning, time.Now().UTC()
	return c.record.write(c.dir.Path())
}

// failed keeps why the program could not be started; the container stays as it
// was created, as docker's does.
func (c *container) failed(cause error) error {
	c.record.Error, c.record.ExitCode = cause.Error(), 125
	var exec *sandbox.ExecError
	if errors.As(cause, &exec) {
		c.record.ExitCode = exec.Code
	}
	return errors.Join(c.writeExit(), c.record.write(c.dir.Path()))
}

func (c *container) exited(e Exit) error {
	c.record.State, c.record.Finished = stateExited, time.Now().UTC()
	c.record.ExitCode, c.record.OOMKilled = e.Code, e.OOMKilled
	if c.request.Remove { // the next moment it is gone; replacing the record takes a millisecond
		return c.writeExit()
	}
	return errors.Join(c.writeExit(), c.record.write(c.dir.Path()))
}

func (c *container) writeExit() error {
	f, err := os.OpenFile(filepath.Join(c.dir.Path(), exitFile), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("container %s: exit code: %w", c.record.ID, err)
	}
	_, err = fmt.Fprintf(f, "%d\n", c.record.ExitCode)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("container %s: exit code: %w", c.record.ID, err)
	}
	return nil
}

// killedCode is the exit code of a container whose den was killed, which kills it, too.
const killedCode = 137

// readExit reads what writeExit wrote.
func readExit(f *os.File) int {
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0) // io.EOF, or nothing to tell
	code, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return killedCode
	}
	return code
}
