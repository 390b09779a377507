#!/bin/sh
# Installs what the tests drive: a registry, real peers to compare with, id mapping for the plain-user rung.
set -eu
want='attr btrfs-progs buildah busybox-static bzip2 ca-certificates docker-registry docker.io e2fsprogs erofs-utils fuse-overlayfs gcc git libc6-dev mmdebstrap openssh-client podman python3-docker runc skopeo spin uidmap xfsprogs xz-utils zstd'
missing=''
for p in $want; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "tests that need these skip and say so; install them to run everything:$missing" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Services of these packages are not wanted: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
apt-get -qq -o Acquire::Retries=3 update
# One by one where all together fail: a distribution may lack one of them.
# shellcheck disable=SC2086
apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends $missing >/dev/null ||
	for p in $missing; do
		apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends "$p" >/dev/null || echo "not installed: $p; tests that need it skip" >&2
	done
