// Package doctor puts into words what den found around itself and chose.
//
// It decides nothing: every choice in a Report was made by the package whose
// choice it is, from facts that were tried, and what doctor adds is how fit that is and
// which line of configuration lifts a shortfall. docs/doctor.md describes the
// JSON form, which only grows.
package doctor

import (
	"time"

	"den/internal/network"
	"den/internal/probe"
	"den/internal/registry"
	"den/internal/sandbox"
	"den/internal/store"
)

// Schema is the version of a Report's JSON.
const Schema = 1

// An Input is what is known.
type Input struct {
	Version string
	Facts   probe.Facts
	// Isolation is the rung that the user forced, or what means auto.
	Isolation string
	Choice    sandbox.Choice
	// ChoiceErr says why there is no rung; nil if there is one.
	ChoiceErr error
	// Storage and Network are the names of what was chosen, with the reason.
	Storage, Network Chosen
	// Networks is what the choice of the network's driver was made from, and more.
	Networks   network.Trial
	Serve      Serve
	Store      Store
	Limits     probe.Limits
	Registries []registry.Reach
	// Now is when all this was found out.
	Now time.Time
}

// Serve is what is known about the place where den serve listens by itself.
type Serve struct {
	// Socket is the path.
	Socket string
	// InUse says that somebody answers there, Err why nobody could listen.
	InUse bool
	Err   error
}

// Chosen is a choice and its reason in a sentence.
type Chosen struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	// Better is the next better one, BetterWhy why it does not work here; empty on the best, and
	// of storage, whose reason says it.
	Better    string `json:"better,omitempty"`
	BetterWhy string `json:"betterWhy,omitempty"`
}

// Store is what is known about the store's directory.
type Store struct {
	Root string
	// OfRoot is where it would be if den were root.
	OfRoot string
	Disk   probe.Disk
	store.Look
	// Err says why no store can be there, or why the one there cannot be opened.
	Err error
	// Slow says that it was not found out in time whether it opens; "" if it was.
	Slow string
}

// A Verdict is how well den works here.
type Verdict string

// Verdicts.
const (
	Fit     Verdict = "fit"     // everything works, and nothing is short
	Limited Verdict = "limited" // it works, with shortfalls
	Unfit   Verdict = "unfit"   // den cannot work at all
)

// A Status is that of one check.
type Status string

// Statuses.
const (
	OK    Status = "ok"    // fit, or allowed
	Note  Status = "note"  // a fact that is no shortfall by itself
	Short Status = "short" // works, but worse than it could
	Bad   Status = "bad"   // does not work
)

// A Report is the answer. Its JSON is stable: names do not change their meaning,
// and new ones may come.
type Report struct {
	Schema  int     `json:"schema"`
	Version string  `json:"version"`
	Verdict Verdict `json:"verdict"`
	Rung    Rung    `json:"rung"`
	Storage Chosen  `json:"storage"`
	Network Chosen  `json:"network"`
	Checks  []Check `json:"checks"`
}

// Rung is the isolation that was chosen.
type Rung struct {
	// Name is privileged, userns, default, restricted, chroot or none; Isolation the
	// word that forces it.
	Name      string `json:"name"`
	Isolation string `json:"isolation,omitempty"`
	// Platform is the sentry's, systrap or ptrace.
	Platform string `json:"platform,omitempty"`
	Why      string `json:"why"`
	// Better is the next better rung, BetterWhy why it does not work here; empty on the best.
	Better    string `json:"better,omitempty"`
	BetterWhy string `json:"betterWhy,omitempty"`
	// Cannot are sentences about what the rung does not give.
	Cannot []string `json:"cannot"`
}

// A Check is one thing that was looked at.
type Check struct {
	// ID is stable, as "store.space"; of a registry "registry.HOST".
	ID string `json:"id"`
	// Area is where it is shown: outer, rung, serve, store, limits, registry or clock.
	Area   string `json:"area"`
	Status Status `json:"status"`
	Text   string `json:"text"`
	// Fix is what lifts a shortfall; nil where there is none, or where nothing of this
	// kind does.
	Fix *Fix `json:"fix,omitempty"`
}

// Areas in the order in which they are shown.
const (
	areaOuter    = "outer"
	areaRung     = "rung"
	areaServe    = "serve"
	areaStore    = "store"
	areaLimits   = "limits"
	areaRegistry = "registry"
	areaClock    = "clock"
)

// Examine puts an Input into words.
func Examine(in Input) Report {
	r := Report{Schema: Schema, Version: in.Version, Rung: rung(in), Storage: in.Storage, Network: in.Network}
	for _, checks := range [][]Check{outerChecks(in), rungChecks(in), serveChecks(in), storeChecks(in), limitChecks(in), registryChecks(in), clockChecks(in)} {
		r.Checks = append(r.Checks, checks...)
	}
	r.Verdict = verdict(r.Checks)
	return r
}

// verdict is unfit only if den cannot work at all: without a rung it still moves
// images, without a store it does nothing.
func verdict(checks []Check) Verdict {
	v := Fit
	for _, c := range checks {
		switch {
		case c.Status == Bad && c.Area == areaStore && c.ID != execID:
			return Unfit
		case c.Status == Bad || c.Status == Short:
			v = Limited
		}
	}
	return v
}

// rung is the chosen one, and why not the next better.
func rung(in Input) Rung {
	if in.ChoiceErr != nil {
		r := Rung{Name: "none", Why: in.ChoiceErr.Error(), Cannot: []string{"RUN steps and containers; images can be pulled, tagged, copied and pushed, and built without RUN"}}
		if in.auto() {
			r.Better = string(sandbox.RungUserns)
			r.BetterWhy = sandbox.WhyNot(in.Facts, sandbox.RungUserns)
		}
		return r
	}
	c := in.Choice
	r := Rung{Name: c.Name(), Isolation: string(c.Rung), Platform: c.Platform, Why: c.Why, Cannot: append([]string{}, c.Cannot...)}
	switch {
	case c.Instead != "":
		r.Better, r.BetterWhy = string(c.Instead), in.Facts.Unmerged
		return r
	case c.Rung == sandbox.RungPrivileged:
	case c.Rung == sandbox.RungUserns:
		r.Better = string(sandbox.RungPrivileged)
	default:
		r.Better = string(sandbox.RungUserns)
	}
	if r.Better == "" {
		return r
	}
	r.BetterWhy = sandbox.WhyNot(in.Facts, sandbox.Rung(r.Better))
	if r.BetterWhy == "" {
		r.BetterWhy = "it works, and " + string(c.Rung) + " was asked for"
	}
	return r
}

func (in Input) auto() bool { return sandbox.Auto(in.Isolation) }
