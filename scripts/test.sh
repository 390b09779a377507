#!/bin/sh
# All tests: the module as whoever calls, the rungs once more as a plain user with a range of ids, then end to end.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
status=0

echo "== unit, contract, script, crash and host tests as $(id -un)"
$GO test -timeout 20m ./... || status=1

# The plain user needs a range of ids; only root can give one.
if [ "$(id -u)" = 0 ] && command -v newuidmap >/dev/null && command -v runuser >/dev/null; then
	user=dentest
	id "$user" >/dev/null 2>&1 || useradd -m -s /bin/sh "$user"
	grep -q "^$user:" /etc/subuid || echo "$user:300000:65536" >>/etc/subuid
	grep -q "^$user:" /etc/subgid || echo "$user:300000:65536" >>/etc/subgid
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	chmod 755 "$dir"
	for pkg in internal/sandbox internal/build/ops internal/engine cmd/den; do
		[ -d "$pkg" ] || continue
		echo "== $pkg as $user"
		$GO test -c -o "$dir/t.test" "./$pkg"
		# The tests read testdata beside the package: the plain user gets a copy.
		rm -rf "$dir/src" && mkdir -p "$dir/src/$(dirname "$pkg")" && cp -r "$pkg" "$dir/src/$pkg"
		chown -R "$user" "$dir/src"
		(cd "$dir/src/$pkg" && runuser -u "$user" -- env HOME="/home/$user" TMPDIR=/tmp PATH="$PATH" "$dir/t.test" -test.timeout 10m) || status=1
	done
fi

if [ -f e2e/go.mod ]; then
	echo "== end to end"
	(cd e2e && $GO test -timeout 25m ./...) || status=1
fi
exit $status
