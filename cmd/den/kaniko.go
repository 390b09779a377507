package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"den/internal/build"
	"den/internal/cloud"
	"den/internal/daemon"
	"den/internal/image"
	"den/internal/kaniko"
	"den/internal/progress"
)

func newKaniko(g *globals, io streams, use string) *cobra.Command {
	o := &kanikoOptions{}
	cmd := &cobra.Command{
		Use:   use + " [flags]",
		Short: "Build and push as kaniko's executor does, with its flags",
		Long: `Build an image from a Dockerfile and push it, with the flags, variables, contexts
and files of kaniko's executor. den is this command when it is called as
/kaniko/executor. ` + kanikoPage + ` lists what works and what differs.

Exit codes: 0 done, that of the RUN command that failed, else 1.`,
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return kanikoFailed(cmd.Context(), io, runKaniko(cmd.Context(), g, o, io))
		},
	}
	o.bind(cmd.Flags())
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return kanikoFailed(cmd.Context(), io, flagError(cmd, err))
	})
	cmd.AddCommand(newKanikoPush(g, io), newLogin(g, io), newKanikoVersion(io), newWarmer(g, io, "warmer"))
	return cmd
}

// A pushError is one of what happens after the build.
type pushError struct{ error }

func (e *pushError) Unwrap() error { return e.error }

// kanikoFailed shows an error as kaniko does and ends with its exit code: that of
// the command that failed, else 1.
func kanikoFailed(ctx context.Context, io streams, err error) error {
	var interrupted *interruptError
	if err == nil || ctx != nil && errors.As(context.Cause(ctx), &interrupted) {
		return err
	}
	code := 1
	var step *gwpb.ExitError
	if errors.As(err, &step) && step.ExitCode > 0 && step.ExitCode < 256 {
		code = int(step.ExitCode)
	}
	var usage *usageError
	text := progress.Plain(err.Error())
	if errors.As(err, &usage) {
		text = "Error: " + text
	}
	fmt.Fprintln(io.err, text)
	return &exitError{code}
}

func runKaniko(ctx context.Context, g *globals, o *kanikoOptions, io streams) error {
	if err := o.complete(); err != nil {
		return err
	}
	log, err := kaniko.NewLog(io.err, o.log)
	if err != nil {
		return &usageError{progress.Plain(err.Error())}
	}
	jobs, err := o.Jobs()
	if err != nil {
		return &usageError{progress.Plain(err.Error())}
	}
	if note := o.ignored.note(kanikoPage); note != "" {
		g.notes = append(g.notes, note)
	}
	do, c, err := o.daemonOptions(g, io, log, jobs)
	if err != nil {
		return err
	}
	if o.Git.InsecureSkipTLS {
		do.Transport = kaniko.LaxTransport(o.Context)
	}
	return g.entered(ctx, do, func(d *daemon.Den) error {
		if err := o.checkPush(ctx, d, jobs); err != nil {
			return err
		}
		if !o.DryRun {
			log.Info(rungHeading(ctx, d).Plain)
		}
		run := &kanikoRun{
			o: o, d: d, log: log, io: io, source: kaniko.Source{Stdin: io.in, Cloud: c},
			show: kaniko.NewProgress(log, io.out, io.err),
		}
		run.deliver = &kaniko.Deliverer{Options: &o.Options, Images: d.Images, Log: log, Sink: run.show}
		for _, j := range jobs {
			if err := run.build(ctx, j); err != nil {
				return err
			}
		}
		return nil
	})
}

// daemonOptions are den's own with what kaniko's flags and variables add.
func (o *kanikoOptions) daemonOptions(g *globals, io streams, log *logrus.Logger, jobs []kaniko.Job) (daemon.Options, *cloud.Client, error) {
	if err := kanikoSurroundings(o.dir); err != nil {
		return daemon.Options{}, nil, err
	}
	do, err := g.daemonOptions(io)
	if err != nil {
		return do, nil, err
	}
	do.Notice = func(line string) { log.Warn(line) }
	if log.IsLevelEnabled(logrus.DebugLevel) {
		do.Debug = func(line string) { log.Debug(line) }
	}
	s := o.Registry.Settings(kaniko.Destinations(jobs))
	do.Mirrors, do.Insecure, do.Certs = append(s.Mirrors, do.Mirrors...), append(s.Insecure, do.Insecure...), append(s.Certs, do.Certs...)
	do.SkipVerify, do.ClientCerts, do.MirrorsOnly = s.SkipVerify, s.ClientCerts, s.MirrorsOnly
	c := cloud.New(cloud.Options{})
	do.Fallback, err = kaniko.Keychain(o.Registry.CredentialHelpers, c, os.LookupEnv)
	if err != nil {
		return do, nil, &usageError{progress.Plain(err.Error())}
	}
	return do, c, nil
}

// kanikoSurroundings lets den find what people mount into kaniko's directory: the
// credentials and the certificates. What the variables say goes first.
func kanikoSurroundings(dir string) error {
	if v := os.Getenv("KANIKO_DIR"); v != "" && dir == "/kaniko" {
		dir = v
	}
	docker := filepath.Join(dir, ".docker")
	given := os.Getenv("DOCKER_CONFIG")
	if fi, err := os.Stat(given); err == nil && !fi.IsDir() { // kaniko takes the file, too
		if err := os.Setenv("DOCKER_CONFIG", filepath.Dir(given)); err != nil {
			return err
		}
	} else if _, here := os.Stat(docker); here == nil && err != nil {
		if err := os.Setenv("DOCKER_CONFIG", docker); err != nil {
			return err
		}
	}
	certs := filepath.Join(dir, "ssl", "certs")
	if _, err := os.Stat(certs); err == nil && os.Getenv("SSL_CERT_DIR") == "" {
		return os.Setenv("SSL_CERT_DIR", "/etc/ssl/certs:"+certs)
	}
	return nil
}

// checkPush finds out before the build whether its result will be let in.
func (o *kanikoOptions) checkPush(ctx context.Context, d *daemon.Den, jobs []kaniko.Job) error {
	if o.NoPush || o.SkipPushCheck || o.DryRun {
		return nil
	}
	checked := map[string]bool{}
	for _, to := range kaniko.Destinations(jobs) {
		repo := to.Context().Name()
		if checked[repo] {
			continue
		}
		checked[repo] = true
		if err := d.Registry.CheckPush(ctx, repo); err != nil {
			return fmt.Errorf("error checking push permissions -- make sure you entered the correct tag name, and that you are authenticated correctly, and try again: checking push permission for %q: %w", to.String(), err)
		}
	}
	return nil
}

// A kanikoRun is one executor at work.
type kanikoRun struct {
	o       *kanikoOptions
	d       *daemon.Den
	log     *logrus.Logger
	io      streams
	source  kaniko.Source
	show    *kaniko.Progress
	deliver *kaniko.Deliverer
}

func (r *kanikoRun) build(ctx context.Context, j kaniko.Job) error {
	req, err := r.o.Request(j)
	if err != nil {
		return &usageError{progress.Plain(err.Error())}
	}
	end, err := r.o.Open(ctx, r.source, &req)
	if err != nil {
		return fmt.Errorf("error resolving source context: %w", err)
	}
	defer end.Close()
	req.Sink, req.Stdout = r.show, r.io.out
	if req.Deliver != nil && r.o.Delivers(j) {
		req.Deliver.To = func(ctx context.Context, b *image.Blobs) error {
			if err := r.deliver.Deliver(ctx, j, b); err != nil {
				return &pushError{err}
			}
			return nil
		}
	} else if req.Deliver = nil; !r.o.DryRun {
		req.Outputs = []string{"type=cacheonly"}
	}
	res, err := r.d.Builder().Solve(ctx, req)
	if err != nil {
		return r.failed(err)
	}
	if req.Deliver == nil && !r.o.DryRun && r.o.NoPush {
		r.log.Info("Skipping push to container registry due to --no-push flag")
	}
	return r.answer(res)
}

func (r *kanikoRun) failed(err error) error {
	var push *pushError
	if errors.As(err, &push) {
		return fmt.Errorf("error pushing image: %w", push.error)
	}
	return fmt.Errorf("error building image: %w", explain(r.io.err, err))
}

// answer prints what --dryrun found.
func (r *kanikoRun) answer(res *build.Response) error {
	if res.Call == nil {
		return nil
	}
	_, err := res.Call.Print(r.io.out)
	return err
}
