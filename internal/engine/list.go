package engine

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// A Summary is what lists show of a container.
type Summary struct {
	ID, Name, Image string
	ConfigDigest    oci.Digest
	Command         []string
	Labels          map[string]string
	Created         time.Time
	Started         time.Time
	Finished        time.Time
	// Status is "created", "running", "exited" or, when the den that ran it
	// is gone without a word, "dead".
	Status    string
	ExitCode  int
	OOMKilled bool
	// Error is why the program could not be started.
	Error   string
	Remove  bool
	TTY     bool
	Volumes []string
}

// Running says that somebody runs the container.
func (s *Summary) Running() bool {
	switch state(s.Status) {
	case stateRunning, statePaused, stateRestarting:
		return true
	}
	return false
}

// List returns this engine's containers, newest first, and cleans up those
// whose den died and that were to be removed.
func (e *Engine) List() ([]Summary, error) {
	ids, err := e.Store.Containers()
	if err != nil {
		return nil, err
	}
	var out []Summary
	for _, id := range ids {
		s, err := e.summary(id)
		if errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if s != nil {
			out = append(out, *s)
		}
	}
	slices.SortStableFunc(out, func(a, b Summary) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// Inspect describes one container.
func (e *Engine) Inspect(nameOrID string) (*Summary, error) {
	cid, err := e.Store.ContainerByName(nameOrID)
	if err != nil {
		return nil, err
	}
	s, err := e.summary(cid)
	if err == nil && s == nil {
		_, err = e.Store.ContainerByName(nameOrID) // it was reaped
	}
	return s, err
}

// Users names the containers, running or not, that use an image.
func (e *Engine) Users(config oci.Digest) ([]string, error) {
	list, err := e.List()
	if err != nil {
		return nil, err
	}
	var users []string
	for _, s := range list {
		if s.ConfigDigest == config {
			users = append(users, s.ID[:12])
		}
	}
	return users, nil
}

// Prune removes the containers that do not run and that keep says nothing
// against, and returns their ids.
func (e *Engine) Prune(keep func(*Summary) bool) ([]string, error) {
	list, err := e.List()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for i := range list {
		if list[i].Running() || keep(&list[i]) {
			continue
		}
		done, err := e.removeFree(list[i].ID)
		errs = append(errs, err)
		if done {
			removed = append(removed, list[i].ID)
		}
	}
	return removed, errors.Join(errs...)
}

// removeFree removes a container unless somebody has it now.
func (e *Engine) removeFree(id string) (bool, error) {
	dir, err := e.Store.OpenContainer(id)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	mine, err := dir.TryLock()
	if err != nil || !mine {
		return false, err
	}
	err = e.remove(dir)
	return err == nil, err
}

// summary describes the container id; nil if it was one to clean up.
func (e *Engine) summary(id string) (*Summary, error) {
	dir, err := e.Store.OpenContainer(id)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		// Either somebody is about to write one, or died before.
		if mine, err := dir.TryLock(); err != nil || !mine {
			return nil, err
		}
		return nil, dir.Remove()
	}
	if err != nil { // a power cut may leave it empty; den rm takes it away
		return &Summary{ID: id, Status: string(stateDead), ExitCode: killedCode, Error: err.Error()}, nil
	}
	s := &Summary{
		ID: r.ID, Name: r.Name, Image: r.Image, ConfigDigest: r.ConfigDigest, Command: r.Command, Labels: r.Labels,
		Created: r.Created, Started: r.Started, Finished: r.Finished, Status: string(r.State),
		ExitCode: r.ExitCode, OOMKilled: r.OOMKilled, Error: r.Error, Remove: r.Remove, TTY: r.TTY,
		Volumes: slices.Concat(r.Volumes, r.Named),
	}
	if r.State == stateExited && !r.Remove || r.Resident && (r.State == stateCreated || e.keeps(id)) {
		return s, nil
	}
	mine, err := dir.TryLock()
	if err != nil || !mine {
		return s, err
	}
	if r.reaps() {
		return nil, e.removeDir(dir, r)
	}
	if r.alive() || r.State == stateRestarting {
		s.Status, s.ExitCode = string(stateDead), killedCode
	}
	return s, nil
}

func readBounded(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
