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
// in docs/design/store.md; in short:
//
//	den-store.json                         what a process must understand
//	blobs/sha256/<hex>                     immutable bytes
//	layers/<class>/<hh>/<id>/{fs,meta.json}  immutable trees, per ownership class
//	cache/<hh>/<key>.json                  build-cache records, the first stays
//	pulled/<hash>.json                     references that all engines share
//	derived/<hh>/<hash>                    memos that can be computed again
//	engines/<id>/{refs,names,containers,networks,events,lock}  what one job named
//	cachemount/<class>/<hash>/<n>/fs       mutable trees of RUN --mount=type=cache
//	volumes/<class>/<engine>/<name>/fs     mutable trees of an engine
//	condemned/ work/ ingest/ tmp/ trash/   the collector's flags, work locks, downloads, drafts
//	sync/<boot id>/                        what is not known to be on disk
//	reserve/<rand>                         room promised to a writer
//	lock/{store,gc,recover,ledger}
package store
