package engine

import (
	"encoding/json"
	"time"

	"den/internal/network"
)

// A CreateRequest is everything that a container of den serve was asked for. What
// den run knows is RunRequest's; of that Pull, Network, Log and CIDFile are not read.
// It is kept beside the container's record.
type CreateRequest struct {
	RunRequest
	// NetworkMode is "host", "none", "container:" and a name or id, "bridge" or another
	// network's name or id. Empty and "default" are the bridge, or the outer container's
	// network where this den has no other.
	NetworkMode string
	// Endpoints ask for places in networks. That of NetworkMode may be missing; Container
	// and Name are not read. Ports and Links of an endpoint are the container's own, below.
	Endpoints []network.EndpointRequest
	// Exposed are ports such as "80/tcp", beside those of the image.
	Exposed []string
	// Ports are published; with PublishAll all that are exposed, too.
	Ports      []network.Port
	PublishAll bool
	// Links are docker's CONTAINER[:ALIAS].
	Links []string
	// VolumesFrom are docker's CONTAINER[:ro].
	VolumesFrom []string
	// PidMode is empty, "host" or "container:" and a name or id; so are IpcMode, which may
	// be "private", "shareable" or "none", too, and UTSMode.
	PidMode, IpcMode, UTSMode string
	Privileged                bool
	Devices                   []Device
	Domainname                string
	// MAC is that of the first network's device; empty is any.
	MAC string
	// OOMScoreAdjust is the kernel's oom_score_adj; nil leaves it.
	OOMScoreAdjust *int
	Annotations    map[string]string
	// CgroupParent is a path below den's own cgroup.
	CgroupParent string
	// HostCgroups shows the container the cgroups of the surroundings.
	HostCgroups bool
	// Masked and ReadOnlyPaths replace docker's lists of paths of proc and sys that are hidden
	// and that are read-only; nil leaves them.
	Masked, ReadOnlyPaths []string
	Restart               RestartPolicy
	// Health replaces the fields of the image's check that are set; nil leaves it.
	Health    *HealthCheck
	LogConfig LogConfig
	// AttachStdin, AttachStdout and AttachStderr are kept for who inspects.
	AttachStdin, AttachStdout, AttachStderr bool
	// StdinOnce closes standard input when the first attached client is done.
	StdinOnce bool
	// Door is the create body as the door normalised it, which Inspect returns. The
	// engine does not read it.
	Door json.RawMessage
}

// A Device is one device node of the surroundings that a container gets.
type Device struct {
	Source, Target string
	// Access is out of r, w and m.
	Access string
}

// RestartPolicy says what happens when a container has ended.
type RestartPolicy struct {
	// Name is "", "no", "always", "unless-stopped" or "on-failure".
	Name string
	// Max bounds how often on-failure tries; 0 is for ever.
	Max int
}

// A HealthCheck says how to find out whether a container works. Zero fields are the
// image's, and docker's defaults where that says nothing.
type HealthCheck struct {
	// Test is ["CMD", argument...], ["CMD-SHELL", line] or ["NONE"].
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// LogConfig says how a container's output is kept.
type LogConfig struct {
	// Driver is "json-file" (or empty), "local" or "none".
	Driver string
	// MaxBytes is the size at which a file of the log is put aside; 0 is the driver's
	// default: none of json-file, 20 MB of local.
	MaxBytes int64
	// MaxFiles is how many files are kept; 0 is the driver's default: 1 of json-file, 5 of local.
	MaxFiles int
	// NonBlocking drops what the log cannot take instead of holding up the program.
	NonBlocking bool
}

// Created is what Create made.
type Created struct {
	ID       string
	Warnings []string
}

// An UpdateRequest changes a container. What is nil stays.
type UpdateRequest struct {
	Limits  *Limits
	Restart *RestartPolicy
	// Door, if set, replaces CreateRequest.Door.
	Door json.RawMessage
}

// RemoveOptions refine Remove.
type RemoveOptions struct {
	// Force kills a running container first.
	Force bool
	// Volumes removes the container's anonymous volumes, too.
	Volumes bool
	// Link removes a link, nameOrID being /CONTAINER/ALIAS, instead of a container.
	Link bool
}

// StopOptions refine Stop and Restart.
type StopOptions struct {
	// Signal is sent first; empty is the container's own stop signal.
	Signal string
	// Seconds is how long the program may take before it is killed; nil is the
	// container's own time, negative is for ever.
	Seconds *int
}
