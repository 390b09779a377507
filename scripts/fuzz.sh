#!/bin/sh
# fuzz.sh TIME: each fuzz target for so long, one after the other. What it finds
# is kept below testdata/fuzz, ready to be committed with its repair.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
time=${1:-20s}
status=0
grep -rl '^func Fuzz' --include='*_test.go' cmd internal | xargs -n1 dirname | sort -u | while read -r dir; do
	"$GO" test -list '^Fuzz' "./$dir" | grep '^Fuzz' | while read -r target; do
		echo "== $dir $target"
		"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -parallel 2 "./$dir" || exit 1
	done || exit 1
done || status=1
exit $status
