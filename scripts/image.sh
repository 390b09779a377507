#!/bin/sh
# Builds den's images by den itself: IMAGE:dind, IMAGE:kaniko and IMAGE:kaniko-debug, one index
# each for all platforms. PUSH=1 pushes them; else they stay in den's store, and in bin/image (OUT) as archives
# for docker load. DEN names the den that builds.
set -eu
cd "$(dirname "$0")/.."
image=${IMAGE:-den}
platforms=${PLATFORMS:-linux/amd64,linux/arm64}
go=${GO:-go}
out=${OUT:-$PWD/bin/image}
den=${DEN:-$PWD/bin/den}
rm -rf "$out"
mkdir -p "$out/context" "$out/busybox/links"

certs=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
[ -s "$certs" ] || { echo "image: no CA certificates at $certs; install ca-certificates, or set CA_CERTIFICATES" >&2; exit 1; }

for p in $(echo "$platforms" | tr , ' '); do
	arch=${p#linux/}
	mkdir -p "$out/context/linux/$arch"
	GOOS=linux GOARCH=$arch CGO_ENABLED=0 $go build -trimpath -ldflags "${LDFLAGS:--s -w}" -o "$out/context/linux/$arch/den" ./cmd/den
	bytes=$(wc -c <"$out/context/linux/$arch/den")
	echo "image: den for $p: $((bytes / 1000000)) MB"
done

# What every program expects of a root file system.
root=$out/context/rootfs
mkdir -p "$root/etc/ssl/certs" "$root/usr/local/bin" "$root/var" "$root/root" "$root/kaniko"
# Whoever the container runs as writes here: sockets, certificates, and a volume takes its mode over.
for dir in tmp var/tmp run certs certs/client var/lib var/lib/docker home home/rootless; do
	mkdir "$root/$dir"
	chmod 1777 "$root/$dir"
done
chmod 755 "$root/var/lib" "$root/home"
ln -s /run "$root/var/run"
cp "$certs" "$root/etc/ssl/certs/ca-certificates.crt"
cp "$certs" "$out/context/ca-certificates.crt"
mkdir "$out/context/kaniko"
cp -a "$root/tmp" "$out/context/kaniko/tmp"
chmod 644 "$root/etc/ssl/certs/ca-certificates.crt" "$out/context/ca-certificates.crt"
printf 'root:x:0:0:root:/root:/usr/local/bin/den\nrootless:x:1000:1000:rootless:/home/rootless:/usr/local/bin/den\n' >"$root/etc/passwd"
printf 'root:x:0:\ndocker:x:2375:\nrootless:x:1000:\n' >"$root/etc/group"
for name in docker dockerd dockerd-entrypoint.sh docker-entrypoint.sh docker-init dind buildah; do
	ln -s den "$root/usr/local/bin/$name"
done
ln -s /usr/local/bin/den "$root/kaniko/executor"
ln -s /usr/local/bin/den "$root/kaniko/warmer"

build() { # ROLE PLATFORMS DIRECTORY [OPTION...]
	role=$1 at=$2 dir=$3
	shift 3
	echo "image: $image:$role for $at"
	if [ -n "${PUSH:-}" ]; then
		set -- "$@" --push
	fi
	"$den" build -q --target "$role" --platform "$at" --build-context "den=$out/context" --build-context "busybox=$out/busybox" -t "$image:$role" "$@" "$dir"
	[ -n "${PUSH:-}" ] || "$den" save -o "$out/$role.tar" "$image:$role"
}
build dind "$platforms" images/dind
build kaniko "$platforms" images/kaniko

# debian_busybox prints the static busybox of Debian's (or Ubuntu's) package for an architecture; no root needed.
debian_busybox() { # ARCH
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
	dir=$out/debian/$1
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	: >"$dir/status"
	set -- "$1" -qq -o "APT::Architecture=$1" -o "APT::Architectures::=$1" -o "Dir::State=$dir" -o "Dir::State::status=$dir/status" \
		-o "Dir::Cache=$dir/cache" -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3
	arch=$1
	shift
	(apt-get "$@" update && cd "$dir" && apt-get "$@" download "busybox-static:$arch" && dpkg-deb -x busybox-static_*.deb root) >&2 || return 1
	find "$dir/root" -type f -path '*bin/busybox'
}

# A static busybox is this machine's or a Debian package's, or BUSYBOX_ARCH names one.
debug=
for p in $(echo "$platforms" | tr , ' '); do
	arch=${p#linux/}
	eval "busybox=\${BUSYBOX_$arch:-}"
	if [ -z "$busybox" ] && [ "$arch" = "$($go env GOHOSTARCH)" ]; then
		busybox=$(command -v busybox || true)
	fi
	[ -n "$busybox" ] || busybox=$(debian_busybox "$arch" || true)
	[ -n "$busybox" ] || { echo "image: kaniko-debug: no busybox for $p; set BUSYBOX_$arch to a static one" >&2; continue; }
	mkdir -p "$out/busybox/linux/$arch"
	cp "$busybox" "$out/busybox/linux/$arch/busybox"
	debug=${debug:+$debug,}$p
done
if [ -n "$debug" ]; then
	for name in $(busybox --list); do
		[ "$name" = busybox ] || ln -sf busybox "$out/busybox/links/$name"
	done
	build kaniko-debug "$debug" images/kaniko
fi
