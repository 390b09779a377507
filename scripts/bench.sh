#!/bin/sh
# The workloads of docs/performance.md: den beside the physical floor and, with DEN_BENCH_BUILDKIT=DIR (buildkitd and
# buildctl), BuildKit. Arguments go to scripts/bench (-rounds N, -only W1,W2, -base debian.tar).
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
	echo "bench: the workloads need root, to make file systems; skipped" >&2
	exit 0
fi
[ -x bin/den ] || make build
mkdir -p bin
(cd scripts/bench && go build -o ../../bin/den-bench .)
exec bin/den-bench -den bin/den "$@"
