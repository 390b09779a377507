#!/bin/sh
# All tests: the module as whoever calls, the rungs once more as a plain user with a range of ids, then end to end.
# Prints go test's own lines; fails if one of them does.
set -u
cd "$(dirname "$0")/.."
GO=${GO:-go}
user=dentest
failed=''
shown='' # which tests say what they found when they pass, too

# step NAME COMMAND... runs a part and remembers its failure.
step() {
	name=$1
	shift
	echo "== $name"
	"$@" || failed="$failed
  $name"
}

# tests DIR ARG... is go test there, with what was skipped at its end.
tests() {
	forbidden=scripts/skips.txt
	# What could not be installed, scripts/deps.sh has said.
	{ [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || forbidden=/dev/null
	(cd "$1" && shift && "$GO" test -json "$@") | "$tools/summary" "$forbidden" ${shown:+"$shown"}
}

# as_user PACKAGE runs a package's tests as the plain user. They find beside
# them the testdata that tests expect in their working directory.
as_user() {
	"$GO" test -c -o "$dir/t.test" "./$1" || return 1
	rm -rf "$dir/src"
	mkdir -p "$dir/src/$(dirname "$1")"
	cp -r "$1" "$dir/src/$1"
	cp -r docs "$dir/src/docs"
	chown -R "$user" "$dir/src"
	(cd "$dir/src/$1" && runuser -u "$user" -- env HOME="$dir/home" TMPDIR="$dir/home" PATH="$PATH" "$dir/t.test" -test.timeout 5m -test.short)
}

# The plain user needs a range of ids; only root can give one.
make_user() {
	id "$user" >/dev/null 2>&1 || useradd -m -s /bin/sh "$user" || return 1
	for f in /etc/subuid /etc/subgid; do
		grep -q "^$user:" "$f" 2>/dev/null || echo "$user:300000:65536" >>"$f"
	done
}

tools=$(mktemp -d)
dir=$tools/user
trap 'rm -rf "$tools"' EXIT
(cd scripts/summary && "$GO" build -o "$tools/summary" .) || exit 1

step "unit, contract, script, crash and host tests as $(id -un)" tests . -timeout 12m ./...

if [ "$(id -u)" = 0 ] && command -v newuidmap >/dev/null && command -v runuser >/dev/null && make_user; then
	mkdir -p "$dir/home"
	chmod 755 "$tools" "$dir"
	chown "$user" "$dir/home"
	for pkg in internal/probe internal/sandbox internal/snapshot internal/build/ops internal/build internal/engine; do
		step "$pkg as $user" as_user "$pkg"
	done
else
	echo "skipped: the tests as a plain user need root, newuidmap and runuser"
fi

shown='Model|Stress'
step "the store's models, every point, and a minute of stress" tests . -tags stress -count=1 -run 'Model|Stress|Anywhere' -timeout 12m ./internal/store
shown=''

step "a minute of power cuts" tests powerloss -tags stress -count=1 -timeout 12m .

step "end to end" tests e2e -timeout 20m ./...

if [ -n "$failed" ]; then
	echo "FAILED:$failed"
	exit 1
fi
echo "all tests passed"
