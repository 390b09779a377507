package main

import (
	"errors"

	"github.com/spf13/pflag"
)

// refusedRunFlags are docker run's that den cannot honour: a sentence is better
// than a container that is not what was asked for.
func refusedRunFlags(f *pflag.FlagSet) {
	for name, why := range map[string]string{
		"privileged":    "den runs no truly privileged containers; name the capabilities with --cap-add",
		"gpus":          "den has no GPU support",
		"device":        "den passes no devices through",
		"publish":       "published ports need den serve; the container shares the network of the container around den, so its ports are there already",
		"publish-all":   "published ports need den serve; the container shares the network of the container around den, so its ports are there already",
		"restart":       "restart policies need den serve",
		"pid":           "a container of den has its own processes only",
		"ipc":           "a container of den has its own IPC namespace",
		"uts":           "a container of den has its own host name; set it with --hostname",
		"userns":        "den chooses the user namespace; see --isolation",
		"link":          "links need den serve",
		"volumes-from":  "name the volumes with -v",
		"cgroup-parent": "a container of den lives below den's own cgroup",
		"runtime":       "den is its own runtime; see --isolation",
		"ip":            "addresses need den serve", "ip6": "addresses need den serve", "mac-address": "addresses need den serve",
		"network-alias": "names in a network need den serve",
		"health-cmd":    "health checks need den serve",
	} {
		shorthand := map[string]string{"publish": "p", "publish-all": "P"}[name]
		f.VarP(&refusedFlag{name, why}, name, shorthand, "Refused: "+why)
		hide(f, name)
	}
	for _, name := range []string{"privileged", "publish-all"} {
		f.Lookup(name).NoOptDefVal = "true"
	}
}

type refusedFlag struct{ name, why string }

// Set refuses any value but the one that asks for nothing.
func (r *refusedFlag) Set(value string) error {
	switch {
	case value == "false", value == "no":
		return nil
	case r.name == "pid" && value == "private", r.name == "ipc" && (value == "private" || value == "shareable"):
		return nil
	}
	return errors.New(r.why)
}

func (r *refusedFlag) String() string { return "" }

// Type is what help shows for the value.
func (r *refusedFlag) Type() string { return "string" }

// acceptedRunFlags are docker run's that mean nothing here, and without which
// the program runs as well.
func acceptedRunFlags(f *pflag.FlagSet, g *globals) {
	const logs = "a detached container's log is kept as json-file"
	const weight = "den sets limits of memory, CPUs and processes only"
	for name, why := range map[string]string{
		"log-driver": logs, "log-opt": logs,
		"cpu-period": weight, "cpu-quota": weight, "memory-swappiness": weight, "oom-score-adj": weight, "kernel-memory": weight,
		"expose":        "the network is shared, so every port is reachable",
		"detach-keys":   "the container ends with den; run it with -d instead",
		"cgroupns":      "a container of den has its own cgroup namespace",
		"domainname":    "only the host name is set",
		"storage-opt":   "the store's file system is the limit",
		"annotation":    "there is no other runtime to read it",
		"volume-driver": "volumes are directories of den's store",
	} {
		f.Var(&acceptedFlag{name: name, why: why, say: g}, name, "Accepted and ignored: "+why)
		hide(f, name)
	}
	for name, why := range map[string]string{
		"oom-kill-disable": weight, "no-healthcheck": "den run does not check health", "disable-content-trust": "signatures are not checked",
	} {
		f.Var(&acceptedFlag{name: name, why: why, say: g}, name, "Accepted and ignored: "+why)
		f.Lookup(name).NoOptDefVal = "true"
		hide(f, name)
	}
}
