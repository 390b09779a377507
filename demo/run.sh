#!/bin/sh
# Builds den, then does its main job on an embedded example: no registry, no package mirror, nothing kept outside ./bin.
set -eu
cd "$(dirname "$0")/.."
den=$PWD/bin/den
base=$PWD/bin/demo-base
work=$PWD/bin/demo
DEN_STORE=${DEN_STORE:-$work/store}
export DEN_STORE
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
now() { date +%s%N; }
took() { awk "BEGIN { printf \"%.2f s\", ($(now) - $1) / 1e9 }"; }

say "A base image made on the spot: one static Go program that is a shell and its tools"
mkdir -p "$work"
rm -rf "$work/rootfs"
"$base" --install "$work/rootfs"
tar -C "$work/rootfs" --owner=0 --group=0 --numeric-owner -cf - . | "$den" import --change 'ENV PATH=/bin' - demo/base

say "den build: a multi-stage Dockerfile, cold"
t=$(now)
"$den" build --no-cache -t demo/app demo/app
cold=$(took "$t")

say "The same again, in a new process: everything comes from the shared store"
t=$(now)
"$den" build -t demo/app demo/app
warm=$(took "$t")

say "den run of the result"
t=$(now)
"$den" run --rm demo/app
ran=$(took "$t")

say "cold build $cold, unchanged build $warm, run $ran"
"$den" images
