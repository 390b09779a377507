package engine

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/containerd/errdefs"
)

// Names for containers that get none: a quality and somebody who built.
var (
	qualities = [...]string{
		"able", "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "candid", "careful", "clear", "clever",
		"cosy", "crisp", "deft", "eager", "early", "fair", "famous", "fleet", "frank", "gentle", "glad", "golden",
		"happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry",
		"modest", "neat", "nimble", "noble", "patient", "plain", "polite", "proud", "quick", "quiet", "ready", "serene",
		"sharp", "silent", "silver", "smart", "sober", "solid", "spry", "steady", "sunny", "swift", "tidy", "warm",
	}
	builders = [...]string{
		"aalto", "agrippa", "alberti", "archimedes", "arup", "babbage", "bazalgette", "bell", "bessemer", "bramante",
		"brunel", "brunelleschi", "candela", "cayley", "clarke", "coade", "daedalus", "darby", "eames", "eiffel",
		"eyre", "fairbairn", "franklin", "fuller", "gaudi", "gray", "gropius", "hadid", "hero", "hopper", "horta",
		"imhotep", "isozaki", "jacobs", "jenney", "kahn", "khan", "kurokawa", "lovelace", "maillart", "mies",
		"morandi", "morris", "nervi", "noether", "otto", "palladio", "paxton", "pei", "perret", "plecnik", "roebling",
		"rogers", "senmut", "shukhov", "sinan", "smeaton", "telford", "utzon", "vauban", "vitruvius", "watt", "wren",
	}
)

// monikerTries is how often a taken name is replaced by another one at random.
const monikerTries = 6

func moniker() string {
	return qualities[rand.IntN(len(qualities))] + "_" + builders[rand.IntN(len(builders))]
}

// nameContainer gives the container id the name that was asked for, or one that
// is free. A name whose container was to remove itself, and whose den died
// before it could, is free.
func (e *Engine) nameContainer(ctx context.Context, name, id string) (string, error) {
	if name == "" {
		for range monikerTries {
			name = moniker()
			if err := e.Store.NameContainer(ctx, name, id); err == nil || !errdefs.IsAlreadyExists(err) {
				return name, err
			}
		}
		return id[:12], e.Store.NameContainer(ctx, id[:12], id)
	}
	err := e.Store.NameContainer(ctx, name, id)
	if !errdefs.IsAlreadyExists(err) {
		return name, err
	}
	owner := "another container"
	if cid, err := e.Store.ContainerByName(name); err == nil {
		owner = "container " + cid[:12]
		if s, err := e.summary(cid); err == nil && s == nil { // it was reaped, or is just being made
			if err := e.Store.NameContainer(ctx, name, id); !errdefs.IsAlreadyExists(err) {
				return name, err
			}
		}
	}
	return "", &sentence{
		fmt.Sprintf("conflict: the container name %q is already in use by %s; remove it (den rm %s) or choose another name", name, owner, name),
		errdefs.ErrAlreadyExists,
	}
}
