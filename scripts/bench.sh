#!/bin/sh
# The workloads of docs/performance.md: den beside the physical floor and BuildKit, as a markdown table.
# Arguments go to scripts/bench (-rounds N, -only W1,W2, -buildkit DIR|none, -cache DIR; -weak is
# den in a plain container, beside its privileged rung and kaniko's figures).
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
	echo "bench: the workloads need root, to make file systems; skipped" >&2
	exit 0
fi
make --no-print-directory build >&2 # what is measured is this tree
(cd scripts/bench && go build -o ../../bin/den-bench .)
# In a mount namespace of its own, so that its file systems go with it however it ends.
exec unshare -m bin/den-bench -den bin/den "$@"
