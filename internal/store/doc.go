// Package store keeps immutable objects on disk, each under its own digest,
// and the few mutable things that name them.
//
// Any number of den processes share one store directory; no daemon stands
// between them. Three rules make that safe:
//
//   - An object appears by rename, complete and verified, or not at all.
//   - An object never changes after it appears.
//   - An object is removed only by the collector, and only while nobody holds
//     its lease.
//
// A lease is a shared flock(2) on the object itself: the kernel drops it when
// the holder dies, in whatever namespace. A missing object is a cache miss,
// never an error of the store. The on-disk format and the protocol's proof are
// in docs/design/store.md.
package store
