// Package ops does what the vertices of a definition say: it runs commands,
// moves files, fetches sources and stacks layers.
//
// Every result is a Ref, a stack of layers named by their diffIDs. Three rules
// keep it cheap and safe:
//
//   - A Ref is lazy. Nothing is downloaded or unpacked before an op needs
//     files, so a build whose steps are all cached touches no layer.
//   - A Ref holds a lease on each layer of it that is in the store, until Close.
//     A layer that is not there can be fetched, or the Ref was never made.
//   - What a step changed becomes a layer by its canonical tar's digest; the tar
//     itself is written nowhere before an export.
//
// Cache keys follow BuildKit's recipe (solver/llbsolver/ops) field by field, so
// that they mean the same in every process and in BuildKit's own caches.
package ops
