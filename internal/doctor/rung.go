package doctor

import (
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// rungChecks say how good the choices are.
func rungChecks(in Input) []Check {
	l := []Check{isolationCheck(in)}
	if in.ChoiceErr == nil {
		l = append(l, shortcomings(in)...)
	}
	return append(l, storageCheck(in), networkCheck(in))
}

func isolationCheck(in Input) Check {
	c := Check{ID: "rung", Area: areaRung}
	if in.ChoiceErr != nil {
		c.Status, c.Text = Bad, "none: "+in.ChoiceErr.Error()
		if in.auto() || in.Isolation == string(sandbox.RungUserns) {
			c.Fix = toUserns(in)
		}
		return c
	}
	c.Status, c.Text = OK, in.Choice.String()+": "+in.Choice.Why
	switch in.Choice.Rung {
	case sandbox.RungSentry:
		c.Status = Note
		if in.Choice.Instead != "" {
			if in.Facts.FSType == "overlay" {
				c.Fix = ownDirectory(in).fix()
			}
			break
		}
		if why := sandbox.WhyNot(in.Facts, sandbox.RungUserns); why != "" {
			c.Text += "; the next better is userns, which is faster: " + why
			if in.Facts.BareTmpfs() { // a line would only add to what is mounted there
				c.Text += "; and a volume for the store, in place of the tmpfs, which before Linux 6.6 keeps no user attributes, so that no overlay can be there"
				break
			}
			c.Fix = toUserns(in)
		}
	case sandbox.RungChroot:
		c.Status = Short
		c.Text += "; " + strings.Join(in.Choice.Cannot, "; ")
		c.Fix = &Fix{Den: []string{"den --isolation auto doctor"}}
	}
	return c
}

// toUserns is what lets den have a user namespace with a range of ids. Root maps
// one by itself, so that nothing has to be installed.
func toUserns(in Input) *Fix {
	f := in.Facts
	if f.Userns.Refused != nil && f.Userns.Refused.Errno == unix.ENOENT {
		return nil // for want of /proc
	}
	if f.Userns.Refused != nil && f.Userns.Refused.Unfinished {
		return nil // nobody knows what would help
	}
	if f.OneID {
		return nil // whoever made the user namespace around den has to make another
	}
	s := setting{hostUsers: true}
	if f.Userns.Refused != nil {
		s.unconfined, s.unlabelled = true, f.Security.SELinux != ""
	}
	have := f.CapEff
	if f.UID != 0 && f.IDs.Missing != "" {
		s.root, have = true, f.CapBnd
	}
	if f.UID == 0 || s.root {
		for _, c := range []struct {
			n    int
			name string
		}{{unix.CAP_SETUID, "SETUID"}, {unix.CAP_SETGID, "SETGID"}, {unix.CAP_SETFCAP, "SETFCAP"}} {
			if !have.Has(c.n) {
				s.caps = append(s.caps, c.name)
			}
		}
	}
	if f.FSType == "overlay" { // or nothing would merge layers there
		switch {
		case f.UID == 0:
			s.volume = in.Store.Root
		case s.root:
			s.volume = in.Store.OfRoot
		default:
			s.tmpfs = in.Store.Root
		}
	}
	for _, bad := range f.Settings {
		s.machine = append(s.machine, "sysctl -w "+allowing(bad))
	}
	return s.fix()
}

// allowing is the value of a kernel setting with which user namespaces are allowed.
func allowing(bad string) string {
	name, _, _ := strings.Cut(bad, "=")
	switch name {
	case "kernel.apparmor_restrict_unprivileged_userns":
		return name + "=0"
	case "user.max_user_namespaces":
		return name + "=15000"
	}
	return name + "=1"
}

// shortcomings are those of the rung that another setting lifts.
func shortcomings(in Input) []Check {
	var l []Check
	c := in.Choice
	if c.Lacks != 0 {
		s := setting{}
		for _, name := range c.Lacks.Names() {
			s.caps = append(s.caps, strings.TrimPrefix(name, "CAP_"))
		}
		l = append(l, Check{ID: "rung.capabilities", Area: areaRung, Status: Short, Fix: s.fix(),
			Text: "steps that need " + strings.Join(c.Lacks.Names(), ", ") + " fail: the outer container does not give it"})
	}
	if c.SharePids {
		l = append(l, Check{ID: "rung.pids", Area: areaRung, Status: Short, Fix: setting{unmasked: true}.fix(),
			Text: "below the masked /proc of the outer container steps see and can signal each other's processes and den's"})
	}
	if c.Rung == sandbox.RungSentry {
		l = append(l, Check{ID: "rung.limits", Area: areaRung, Status: Note, Text: "the sentry enforces --memory, --cpus, --cpuset-cpus and --pids-limit by itself; --cpu-shares, --memory-swap and limits of block devices are not enforced"})
	} else if in.Facts.CgroupErr != "" {
		check := Check{ID: "rung.limits", Area: areaRung, Status: Note, Text: "--memory, --cpus and --pids-limit are not enforced: " + in.Facts.CgroupErr + "; those of the outer container are"}
		if in.Facts.UID == 0 {
			switch in.Facts.Cgroup {
			case 1:
				check.Fix = setting{cgroups: "v1"}.fix()
			case 2:
				check.Fix = setting{cgroups: "v2"}.fix()
			}
		}
		l = append(l, check)
	}
	return l
}

// storageCheck is about the driver, and not about the disk.
func storageCheck(in Input) Check {
	c := Check{ID: "storage", Area: areaRung, Status: OK, Text: in.Storage.Why}
	switch in.Storage.Name {
	case "none":
		c.Status = Note
		if in.ChoiceErr == nil {
			c.Status = Bad // one was forced that does not work
		}
	case "copy":
		if in.ChoiceErr == nil && in.Choice.Rung == sandbox.RungChroot {
			c.Status = Note // it knows no other
			break
		}
		c.Status = Short
		if in.Facts.FSType == "overlay" {
			c.Fix = ownDirectory(in).fix()
		}
	}
	return c
}

// ownDirectory is a place for the store that is not the container's own file
// system. Docker gives a new volume to root, so that others get a tmpfs.
func ownDirectory(in Input) setting {
	if in.Facts.UID == 0 {
		return setting{volume: in.Store.Root}
	}
	return setting{tmpfs: in.Store.Root}
}
