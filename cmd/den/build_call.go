package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"den/internal/build"
	"den/internal/daemon"
	"den/internal/progress/display"
)

// A buildCall is one den build as it was typed.
type buildCall struct {
	globals *globals
	options *buildOptions
	context string
	streams streams
}

func (c buildCall) request() build.Request {
	o := c.options
	r := build.Request{
		Context: c.context, File: o.file, Stdin: c.streams.in, Stdout: c.streams.out,
		Tags: o.tags, BuildArgs: o.buildArgs, BuildContexts: o.buildContexts, Labels: o.labels,
		Annotations: o.annotations, Target: o.target, Platforms: o.platforms,
		NoCache: o.noCache, NoCacheFilter: o.noCacheFilter, CacheScopes: o.cacheScopes, Pull: o.pull,
		Network: o.network, AddHosts: o.addHosts, ShmSize: o.shmSize, Ulimits: o.ulimits,
		Secrets: o.secrets, SSH: o.ssh, Allow: o.allow,
		Outputs: o.outputs, Push: o.push, Load: o.load, IIDFile: o.iidFile, MetadataFile: o.metadataFile,
		Call: o.call, LookupEnv: c.globals.lookupEnv,
	}
	if o.check {
		r.Call = "check"
	}
	return r
}

// quietProgress is the mode that also prints the image's ID: "none" does not.
const quietProgress = "quiet"

func runBuild(ctx context.Context, call buildCall) error {
	return withDen(ctx, call.globals, call.streams, func(d *daemon.Den) error {
		if call.options.quiet {
			call.options.progress = quietProgress
		}
		show, err := display.NewBuild(call.streams.err, call.options.progress, call.heading(ctx, d))
		if err != nil {
			return &usageError{err.Error()}
		}
		req := call.request()
		req.Sink = show
		res, err := d.Builder().Solve(ctx, req)
		if err := errors.Join(err, show.Close()); err != nil {
			return explain(call.streams.err, err)
		}
		return call.answer(res)
	})
}

// heading says on which rung the steps run, or that none can, where it is shown.
func (c buildCall) heading(ctx context.Context, d *daemon.Den) display.Heading {
	switch c.options.progress {
	case quietProgress, "none", "rawjson":
		return display.Heading{}
	}
	return rungHeading(ctx, d)
}

// rungHeading says on which rung steps run, or that none can.
func rungHeading(ctx context.Context, d *daemon.Den) display.Heading {
	rung, err := d.Rung(ctx)
	if err != nil {
		return display.Heading{Plain: "rung none: RUN cannot be executed here (den doctor says why)", Terminal: "rung none"}
	}
	why, _, _ := strings.Cut(rung.Why, ";")
	return display.Heading{Plain: fmt.Sprintf("rung %s: %s", rung, why), Terminal: "rung " + rung.String()}
}

// answer prints what belongs on standard output.
func (c buildCall) answer(res *build.Response) error {
	if res.Call != nil {
		status, err := res.Call.Print(c.streams.out)
		if err == nil && status != 0 {
			err = &exitError{status}
		}
		return err
	}
	if c.options.progress == quietProgress && res.ImageID != "" {
		fmt.Fprintln(c.streams.out, res.ImageID)
	}
	return nil
}
