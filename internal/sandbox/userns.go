package sandbox

import "den/internal/probe"

// EnterUserns replaces the calling process by the same program, with argv and
// env, inside a new user and mount namespace mapped as f.IDs says. The process
// keeps its id, its streams and its place in the process tree, so that signals and
// exit codes need nobody in between. It returns only on error, before anything has changed.
func EnterUserns(f probe.Facts, argv, env []string) error {
	return nil
}

// InUserns reports whether EnterUserns made this process.
func InUserns() bool { return false }
