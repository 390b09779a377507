package powerloss

import (
	"maps"
	"slices"
)

// An event is what a process did to the store, in the log of the disk.
type event struct {
	// Op is one of
	//   published   an object or a record is visible
	//   naming      a reference is about to be set to Version, or removed
	//   named       it was
	//   removing    a record is about to be evicted
	//   collecting  what nothing names may go from now on
	//   collected   until now
	//   closing     a process is about to close the store
	//   closed      it did
	//   durable     the epoch of Rel, for a reference at Version, is over
	Op      string
	Rel     string   // path in the store
	Needs   []string // the paths that it names
	Version int      // of a reference
	Root    bool     // a record or reference
	Worker  string   // whose publication or close it is
}

// An object is what is known of a path in the store at one moment.
type object struct {
	needs     []string
	root      bool
	published int  // where in the log; 0 is not
	durable   bool // a power cut must leave it
	void      bool // it may have been removed
	worker    string
	version   int // of a reference: the last that is visible
	begun     int // the last that was begun
	lasting   int // the last that is durable
}

// expected is what must be there after a power cut.
type expected struct {
	Objects []string
	Refs    map[string]refRange
}

// A refRange is what a reference may be: of a version from Least to Most, and
// it must be there if Must is set.
type refRange struct {
	Least, Most int
	Must        bool
}

// expectations replays what was said.
type expectations struct {
	strict     bool
	objects    map[string]*object
	collecting int
	closing    map[string]int // by worker: where in the log
	now        int
	done       int
}

func newExpectations(strict bool) *expectations {
	return &expectations{strict: strict, objects: map[string]*object{}, closing: map[string]int{}}
}

// upTo goes on to the log's entry end.
func (x *expectations) upTo(log []entry, end int) {
	for ; x.done < end; x.done++ {
		if e := log[x.done].said; e != nil {
			x.now = x.done + 1
			x.say(*e)
		}
	}
}

func (x *expectations) object(rel string) *object {
	o := x.objects[rel]
	if o == nil {
		o = &object{}
		x.objects[rel] = o
	}
	return o
}

func (x *expectations) say(e event) {
	o := &object{}
	if e.Rel != "" {
		o = x.object(e.Rel)
	}
	switch e.Op {
	case "published":
		if o.published == 0 {
			o.published = x.now
		}
		o.needs, o.root, o.worker = e.Needs, e.Root, e.Worker
		if x.collecting > 0 && !o.root {
			o.void = true
		}
	case "naming":
		o.root, o.begun = true, e.Version
		x.closing["naming "+e.Rel] = x.now
	case "named":
		o.version, o.needs, o.published = e.Version, e.Needs, x.now
		if x.strict {
			x.lasts(x.closing["naming "+e.Rel], "")
			o.durable, o.lasting = true, e.Version
		}
	case "removing":
		o.void = true
	case "collecting":
		x.collecting++
		for _, o := range x.objects {
			o.void = o.void || !o.root
		}
	case "collected":
		x.collecting--
	case "closing":
		x.closing[e.Worker] = x.now
	case "closed":
		if x.strict { // who has nothing of its own to sync does not sync what is others'
			x.lasts(x.closing[e.Worker], e.Worker)
		}
	case "durable":
		o.durable, o.lasting = true, max(o.lasting, e.Version)
	}
}

// lasts says that a sync that began at the log's entry at is over, of all that is there or
// of what worker published.
func (x *expectations) lasts(at int, worker string) {
	for _, o := range x.objects {
		if o.published > 0 && o.published <= at && (worker == "" || o.worker == worker) {
			o.durable, o.lasting = true, max(o.lasting, o.version)
		}
	}
}

// want is what a power cut now must leave: everything durable, or only what is named,
// when there was a collection since.
func (x *expectations) want(collected bool) expected {
	w := expected{Refs: map[string]refRange{}}
	must := map[string]bool{}
	var keep func(rel string)
	keep = func(rel string) {
		if !must[rel] {
			must[rel] = true
			for _, n := range x.object(rel).needs {
				keep(n)
			}
		}
	}
	for rel, o := range maps.Clone(x.objects) {
		if o.begun > 0 {
			// A newer version that is torn takes the older with it, except in
			// strict mode. Version 0 is none.
			r := refRange{Least: o.lasting, Most: o.begun, Must: o.durable && (x.strict && !o.void || o.begun == o.lasting)}
			w.Refs[rel] = r
			if r.Must && o.begun == o.lasting {
				for _, n := range o.needs {
					keep(n)
				}
			}
		} else if o.durable && !o.void && (o.root || !collected) {
			keep(rel)
		}
	}
	w.Objects = slices.Sorted(maps.Keys(must))
	return w
}
