#!/bin/sh
# A virtual machine for what the kernel of this one cannot show: Debian's, with cgroups of version 2 only, AppArmor and dockerd,
# and no network but its own loopback device. Not part of `make test`: without KVM it is some ten times slower.
#
#   scripts/vm.sh make DIR              makes the machine in DIR from Debian's packages (2 GB)
#   scripts/vm.sh run DIR COMMAND...    boots it and runs a command in it as root, in DIR/share, which is /share there
#   scripts/vm.sh test DIR PACKAGE ...  runs the tests of a package in it, with these flags of theirs (-test.run, -test.v), in
#                                       a cgroup and a cgroup namespace of their own, as in a container
#
# ARCH (amd64, arm64) and SUITE (bookworm) choose Debian's packages, LSM (apparmor, none) the security module, ACCEL (tcg, kvm)
# how it runs; MEMORY (4G), CPUS (2) and SECONDS_MAX (1200) bound it. Each start begins with the disk that `make` wrote; what
# shall stay goes to /share. The exit status is the command's, 125 if the machine ended first. Needs root and the
# packages mmdebstrap, qemu-system-x86 or qemu-system-arm, e2fsprogs, cpio and kmod, and for a foreign ARCH qemu-user-static.
set -eu

suite=${SUITE:-bookworm}
arch=${ARCH:-$(dpkg --print-architecture)}
lsm=${LSM:-apparmor}
case $arch in
amd64) qemu="qemu-system-x86_64 -M q35" console=ttyS0 ;;
arm64) qemu="qemu-system-aarch64 -M virt" console=ttyAMA0 ;;
*) echo "vm.sh: no machine for the architecture $arch" >&2; exit 2 ;;
esac

# What the tests drive, and dockerd's own.
packages="apparmor,attr,btrfs-progs,busybox-static,bzip2,ca-certificates,docker-registry,docker.io,e2fsprogs,fuse-overlayfs,fuse3"
packages="$packages,gcc,git,iproute2,iptables,kmod,libc6-dev,linux-image-$arch,nftables,procps,runc,skopeo,uidmap,xfsprogs,xz-utils,zstd"

make_machine() {
	dir=$1
	mkdir -p "$dir/share"
	rm -rf --one-file-system "$dir/root"
	INITRD=No mmdebstrap --quiet --variant=minbase --architectures="$arch" --include="$packages" "$suite" "$dir/root"
	cp "$dir"/root/boot/vmlinuz-* "$dir/vmlinuz"
	mkdir -p "$dir/root/share"
	initrd "$dir" "$(ls "$dir/root/lib/modules")"
	rm -f "$dir/root.img"
	truncate -s 6G "$dir/root.img"
	mke2fs -q -t ext4 -d "$dir/root" "$dir/root.img"
	rm -rf --one-file-system "$dir/root"
}

# initrd DIR VERSION has what finds the disk, and nothing else: Debian's own (INITRD) takes longer to make than all the rest.
initrd() {
	dir=$1 version=$2 tree=$1/initrd
	rm -rf "$tree"
	mkdir -p "$tree/bin" "$tree/lib/modules/$version" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/disk"
	cp "$dir/root/bin/busybox" "$tree/bin/busybox"
	for m in virtio_pci virtio_blk ext4 9p 9pnet_virtio crc32c_generic; do
		modprobe -d "$dir/root" -S "$version" --show-depends "$m" | while read -r kind file _; do
			[ "$kind" = insmod ] || continue
			to=$tree/${file#"$dir/root/"}
			mkdir -p "$(dirname "$to")"
			cp "$file" "$to"
		done
	done
	depmod -b "$tree" "$version" 2>/dev/null
	cat >"$tree/init" <<-'INIT'
		#!/bin/busybox sh
		/bin/busybox --install -s /bin
		mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
		for m in virtio_pci virtio_blk ext4 crc32c_generic 9pnet_virtio 9p; do modprobe $m; done
		mount -t ext4 /dev/vda /disk && mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /disk/share
		umount /proc /sys
		mount --move /dev /disk/dev
		exec switch_root /disk /bin/sh /share/.init
	INIT
	chmod 755 "$tree/init"
	(cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd.gz"
	rm -rf "$tree"
}

# init is the machine's first process: what an init system would mount, dockerd, the command.
init() {
	cat <<-'INIT'
		export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
		mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t securityfs securityfs /sys/kernel/security
		mkdir -p /dev/pts /dev/shm; mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts; mount -t tmpfs shm /dev/shm
		mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock; mount -t tmpfs -o mode=1777 tmp /tmp
		mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
		mkdir -p /sys/fs/cgroup/init /sys/fs/cgroup/dockerd /sys/fs/cgroup/command; echo $$ >/sys/fs/cgroup/init/cgroup.procs
		for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done
		for m in overlay fuse veth bridge br_netfilter nf_tables nft_compat loop tun; do modprobe $m; done
		ip link set lo up; hostname vm; echo nameserver 127.0.0.1 >/etc/resolv.conf
		ulimit -n 1048576; ulimit -l unlimited
		(echo 0 >/sys/fs/cgroup/dockerd/cgroup.procs; exec dockerd >/share/dockerd.log 2>&1) &
		i=0; while ! docker version >/dev/null 2>&1 && [ $i -lt 180 ]; do sleep 1; i=$((i+1)); done
		cd /share
		(echo 0 >/sys/fs/cgroup/command/cgroup.procs; exec sh /share/.command </dev/null)
		echo $? >/share/.status
		sync
		echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger
		sleep 100
	INIT
}

# test_package DIR PACKAGE FLAG... is run_machine with a package's tests.
test_package() {
	dir=$1 package=${2#./}
	shift 2
	rm -rf --one-file-system "$dir/share/src"
	mkdir -p "$dir/share/src/$(dirname "$package")"
	cp -r "$package" "$dir/share/src/$package"
	cp -r docs "$dir/share/src/docs"
	CGO_ENABLED=0 GOARCH="$arch" "${GO:-go}" test -c -o "$dir/share/package.test" "./$package"
	cat >"$dir/share/.test" <<-'TEST'
		umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
		cd "/share/src/$1"
		shift
		exec /share/package.test "$@"
	TEST
	run_machine "$dir" unshare --cgroup --mount sh /share/.test "$package" "$@"
}

run_machine() {
	dir=$1
	shift
	init >"$dir/share/.init"
	rm -f "$dir/share/.status"
	for word; do printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done >"$dir/share/.command"
	accel=${ACCEL:-tcg,thread=multi}
	case $lsm in
	apparmor) options="apparmor=1 security=apparmor" ;;
	none) options="apparmor=0" ;;
	*) echo "vm.sh: no security module $lsm" >&2; exit 2 ;;
	esac
	# shellcheck disable=SC2086 # both are words
	timeout "${SECONDS_MAX:-1200}" $qemu -cpu max -smp "${CPUS:-2}" -m "${MEMORY:-4G}" -accel $accel -nographic -no-reboot -nic none \
		-kernel "$dir/vmlinuz" -initrd "$dir/initrd.gz" -append "console=$console panic=-1 quiet rdinit=/init $options" \
		-drive "file=$dir/root.img,format=raw,if=virtio,snapshot=on" \
		-virtfs "local,path=$dir/share,mount_tag=share,security_model=none,multidevs=remap" </dev/null
	[ -e "$dir/share/.status" ] || { echo "vm.sh: the machine ended before the command did" >&2; exit 125; }
	exit "$(cat "$dir/share/.status")"
}

case $#:${1-} in
2:make) make_machine "$2" ;;
[3-9]:run | [1-9][0-9]:run) shift; run_machine "$@" ;;
[3-9]:test | [1-9][0-9]:test) shift; test_package "$@" ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
