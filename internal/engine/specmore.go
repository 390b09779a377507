package engine

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/sandbox"
)

// refineMore applies what only den serve is asked for.
func (c *container) refineMore(spec *specs.Spec) error {
	m := c.more
	spec.Process.OOMScoreAdj = m.OOMScoreAdjust
	spec.Domainname = m.Domainname
	if len(m.Annotations) > 0 {
		spec.Annotations = m.Annotations
	}
	for kind, mode := range map[specs.LinuxNamespaceType]string{
		specs.PIDNamespace: m.PidMode, specs.IPCNamespace: m.IpcMode, specs.UTSNamespace: m.UTSMode,
	} {
		if mode == "host" {
			spec.Linux.Namespaces = dropNamespace(spec.Linux.Namespaces, kind)
		}
	}
	if m.HostCgroups {
		spec.Linux.Namespaces = dropNamespace(spec.Linux.Namespaces, specs.CgroupNamespace)
	}
	if m.CgroupParent != "" {
		spec.Linux.CgroupsPath = path.Join("/", m.CgroupParent, "den-"+c.record.ID)
	}
	if m.Masked != nil {
		spec.Linux.MaskedPaths = m.Masked
	}
	if m.ReadOnlyPaths != nil {
		spec.Linux.ReadonlyPaths = m.ReadOnlyPaths
	}
	if m.UTSMode == "host" {
		spec.Hostname, spec.Domainname = "", ""
	}
	if m.IpcMode == "none" {
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(x specs.Mount) bool { return x.Destination == "/dev/shm" })
	}
	for _, d := range m.Devices {
		if err := addDevice(spec, d); err != nil {
			return err
		}
	}
	return nil
}

// addDevice gives the container a device node of the surroundings, or all in a directory.
func addDevice(spec *specs.Spec, d Device) error {
	target := d.Target
	if target == "" {
		target = d.Source
	}
	found, err := sandbox.Devices(d.Source)
	if err != nil {
		return invalid("error gathering device information while adding custom device %q: %v", d.Source, err)
	}
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	for _, dev := range found {
		dev.Path = path.Join(target, strings.TrimPrefix(dev.Path, path.Clean(d.Source)))
		spec.Linux.Devices = append(spec.Linux.Devices, dev)
		major, minor := dev.Major, dev.Minor
		if spec.Linux.Resources == nil {
			spec.Linux.Resources = &specs.LinuxResources{}
		}
		spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: dev.Type, Major: &major, Minor: &minor, Access: access,
		})
	}
	return nil
}
