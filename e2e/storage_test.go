package e2e

import (
	"strings"
	"sync"
	"testing"
)

// nearly is a root with all capabilities but one that few machines' containers have all
// of, and the machine's devices.
var nearly = []string{"--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
	"--security-opt=systempaths=unconfined", "--device-cgroup-rule=a *:* rwm"}

func TestStoreOnAContainersOwnOverlayGetsAnImage(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for name, flags := range map[string][]string{
		"with the machine's /dev": append([]string{"-v", "/dev:/dev"}, nearly...),
		"with nodes of its own":   nearly,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			d.fill(d.home, files{"ctx/Dockerfile": nestedDockerfile, "ctx/f": "f"})
			out, err := outer{docker, d, flags}.sh(`den store create --backing loop --size 20g
				den build -q -t nested ctx 2>&1 & den build -q -t other ctx 2>&1; wait
				den run --rm nested stat -c '%a %u:%g' /srv/file
				den store gc --all >/dev/null; den store verify --deep >/dev/null; den info; ls /var/lib/den/store; du -m /var/lib/den/den-backing.img`)
			if err != nil && strings.Contains(err.Error(), "loop devices cannot be used here") {
				t.Skip("needs loop devices in containers")
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"4755 33:44", "Storage driver:  overlay", "/var/lib/den/store (ext4)", "image of 20GiB on /dev/loop"} {
				if !strings.Contains(out, word) {
					t.Errorf("den does not say %q:\n%s", word, out)
				}
			}
			if strings.Contains(out, "copies its whole root") {
				t.Errorf("den copies:\n%s", out)
			}
		})
	}
}

func TestContainersShareAnImageOnAVolume(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": nestedDockerfile, "ctx/f": "f", "store/": ""})
	o := outer{docker, d, append([]string{"-v", "/dev:/dev", "-v", d.store() + ":/var/lib/den"}, nearly...)}
	if _, err := o.sh(`den store create --backing loop --size 20g`); err != nil && strings.Contains(err.Error(), "loop devices cannot be used here") {
		t.Skip("needs loop devices in containers")
	} else if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			out, err := o.sh(`den build -q -t mine ctx; den run --rm mine stat -c '%a %u:%g' /srv/file; den store df | grep Image`)
			if err != nil || !strings.Contains(out, "4755 33:44") || !strings.Contains(out, "of 20GiB") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	out, err := o.sh(`den build --progress=rawjson ctx 2>&1; den store verify --deep >&2`)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "executed by the next job", []string(nil), executed(t, out))
}

func TestContainerWithoutLoopDevicesIsToldSo(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	_, err := outer{docker, newDen(t), nil}.sh(`den store create --backing loop --size 1g`)
	if err == nil || !strings.Contains(err.Error(), "loop devices cannot be used here") || !strings.Contains(err.Error(), "--device-cgroup-rule") {
		t.Error(err)
	}
}

// What a step changes is the same whoever has recorded it.
func TestEveryStorageDriverMakesTheSameTree(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"f": "f", "Dockerfile": `FROM @small
RUN mkdir -p /srv/a/b && echo 1 > /srv/a/b/c && echo 2 > /srv/a/d && chown 33:44 /srv/a/d && chmod 4755 /srv/a/d && echo l > /l && ln /l /srv/l
COPY f /srv/a/f
RUN rm -r /srv/a/b && mkdir /srv/a/b && echo 3 > /srv/a/b/new && rm /srv/a/f && mkdir /srv/new && chmod 700 /srv/a && ln -s new /srv/link && mv /srv/new /srv/newer
`})
		var want tree
		for _, driver := range []string{"overlay", "fuse-overlayfs", "copy"} {
			r := d.try(nil, "--storage-driver", driver, "build", "-q", "--no-cache", "-t", "x", "-o", "type=tar,dest="+d.home+"/x.tar", ctx)
			if r.code != 0 && driver == "fuse-overlayfs" && strings.Contains(r.err, "it was asked for, and") {
				t.Logf("not tried: %s", r.err) // no program, or no /dev/fuse
				continue
			}
			if r.code != 0 {
				t.Fatalf("%s: %s", driver, r.err)
			}
			got := readTree(t, d.home+"/x.tar").below("")
			if want == nil {
				want = got
			}
			equal(t, driver, want, got)
			d.run("--storage-driver", driver, "build", "-q", "-t", "x", ctx)
			out := d.run("--storage-driver", driver, "run", "--rm", "x", "sh", "-ec", "cat /srv/a/b/new; stat -c '%a %u:%g' /srv/a/d; ! ls /srv/a/f; echo written > /srv/a/b/new; cat /srv/a/b/new")
			if out != "3\n4755 33:44\nwritten\n" {
				t.Errorf("%s: a container says %q", driver, out)
			}
		}
	})
}
