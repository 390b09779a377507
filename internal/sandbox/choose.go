package sandbox

import "den/internal/probe"

// A Rung is one strength of isolation.
type Rung string

// Rungs of this build, best first.
const (
	RungPrivileged Rung = "privileged"
	RungUserns     Rung = "userns"
)

// A Choice is the rung to run on and how to get there.
type Choice struct {
	Rung Rung
	// Enter says that the process has to call EnterUserns first.
	Enter bool
	// SharePids says that sandboxes cannot have a pid namespace of their own.
	SharePids bool
	// Why is one sentence for people.
	Why string
}

// Choose picks the rung for facts. isolation is what the user forced:
// "", "auto", a rung, or a foreign word that means auto. The error lists what
// was tried and what to install or set.
func Choose(f probe.Facts, isolation string) (Choice, error) {
	return Choice{}, nil
}
