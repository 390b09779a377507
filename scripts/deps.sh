#!/bin/sh
# Installs what the tests drive: a registry, real peers to compare with, id mapping for the plain-user rung.
set -eu
want='docker-registry runc skopeo uidmap busybox-static docker.io mmdebstrap buildah podman attr xz-utils zstd'
missing=''
for p in $want; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "tests that need these skip and say so; install them to run everything:$missing" >&2
	exit 0
fi
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
