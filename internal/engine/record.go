package engine

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"den/internal/durable"
	"den/internal/oci"
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
	Volumes      []string          `json:"anonymousVolumes,omitempty"`
	Created      time.Time         `json:"created"`
	Started      time.Time         `json:"started,omitzero"`
	Finished     time.Time         `json:"finished,omitzero"`
	State        state             `json:"state"`
	ExitCode     int               `json:"exitCode"`
	OOMKilled    bool              `json:"oomKilled,omitempty"`
}

// state is where a container is in its life. A running one whose directory is
// not locked has lost its den.
type state string

const (
	stateCreated state = "created"
	stateRunning state = "running"
	stateExited  state = "exited"
)

const recordFile = "container.json"

func newRecord(c *container, id, name string) record {
	return record{
		V: 1, ID: id, Name: name, Image: c.request.Image, ConfigDigest: c.image.ConfigDigest,
		Command: command(c.request, c.config), Labels: c.request.Labels, Remove: c.request.Remove,
		Created: time.Now().UTC(), State: stateCreated,
	}
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

// started and exited are the transitions of a container's life.
func (c *container) started() error {
	c.record.State, c.record.Started = stateRunning, time.Now().UTC()
	return c.record.write(c.dir.Path())
}

func (c *container) exited(e Exit) error {
	c.record.State, c.record.Finished = stateExited, time.Now().UTC()
	c.record.ExitCode, c.record.OOMKilled = e.Code, e.OOMKilled
	return c.record.write(c.dir.Path())
}
