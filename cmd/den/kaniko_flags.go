package main

import (
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"den/internal/kaniko"
)

// kanikoPage is the page for people who come from kaniko.
const kanikoPage = "docs/kaniko.md"

// kanikoOptions are the flags of kaniko's executor, spelt as kaniko spells them.
type kanikoOptions struct {
	kaniko.Options
	log     kaniko.LogOptions
	dir     string
	helpers []string
	cache   string
	ignored ignored
}

// listFlag adds each value as it was typed, also an empty one.
type listFlag struct{ to *[]string }

// Set adds a value.
func (l listFlag) Set(v string) error {
	*l.to = append(*l.to, v)
	return nil
}

func (l listFlag) String() string { return "" }

// Type is what help shows for the value.
func (l listFlag) Type() string { return "list" }

func (o *kanikoOptions) bind(f *pflag.FlagSet) {
	o.Env, o.LookupEnv = os.Getenv, os.LookupEnv
	list := func(to *[]string, name, letter, usage string) { f.VarP(listFlag{to}, name, letter, usage) }
	f.StringVarP(&o.Dockerfile, "dockerfile", "f", "Dockerfile", "Path to the Dockerfile: here, in the context, or a URL")
	f.StringVarP(&o.Context, "context", "c", "/workspace/", "Build context: a directory, or dir://, tar://, gs://, s3://, git://, https://")
	f.StringVar(&o.ContextSubPath, "context-sub-path", "", "Directory within the context")
	f.StringVarP(&o.Bucket, "bucket", "b", "", "GCS bucket with the context")
	hide(f, "bucket")
	list(&o.Destinations, "destination", "d", "Name that the image is pushed to (repeatable; for another target than the first TARGET=NAME)")
	list(&o.BuildArgs, "build-arg", "", "Set an ARG: NAME=VALUE, or NAME for the variable's value (repeatable)")
	list(&o.Targets, "target", "", "Stage to build (repeatable)")
	list(&o.Labels, "label", "", "Set a label (repeatable)")
	list(&o.Annotations, "annotation", "", "Set an annotation of the manifest (repeatable)")
	list(&o.Secrets, "secret", "", "Secret for RUN --mount=type=secret: id=ID[,src=FILE][,env=VAR][,type=file|env] (repeatable)")
	list(&o.IgnorePaths, "ignore-path", "", "Leave a path out of the image's own layers (repeatable)")
	f.StringVar(&o.CustomPlatform, "custom-platform", "", "Platform to build for")
	f.StringVar(&o.CustomPlatform, "customPlatform", "", "The same as --custom-platform")
	f.StringVar(&o.TarPath, "tar-path", "", "Write the image to a tarball")
	f.StringVar(&o.TarPath, "tarPath", "", "The same as --tar-path")
	hide(f, "customPlatform")
	hide(f, "tarPath")
	f.StringVar(&o.OCILayoutPath, "oci-layout-path", "", "Write the image to an OCI layout directory")
	f.BoolVar(&o.NoPush, "no-push", false, "Do not push the image")
	f.StringVar(&o.DigestFile, "digest-file", "", "Write the image's digest to a file or https URL")
	f.StringVar(&o.NameDigestFile, "image-name-with-digest-file", "", "Write NAME@DIGEST of each destination to a file")
	f.StringVar(&o.TagDigestFile, "image-name-tag-with-digest-file", "", "Write NAME:TAG@DIGEST of each destination to a file")
	f.StringVar(&o.Compression, "compression", "", "Compression of layers (gzip, zstd)")
	f.IntVar(&o.CompressionLevel, "compression-level", -1, "Compression level")
	f.StringVar(&o.ImageFormat, "image-format", "", "Media types of the image (oci, docker)")
	f.BoolVar(&o.SingleSnapshot, "single-snapshot", false, "Make one layer of all that the build adds")
	f.BoolVar(&o.Reproducible, "reproducible", false, "Set the times of the image and its own files to the epoch")
	f.BoolVar(&o.DryRun, "dryrun", false, "Show what the Dockerfile takes, and build nothing")
	f.BoolVar(&o.SkipPushCheck, "skip-push-permission-check", false, "Do not find out before the build whether the push will be let in")
	f.Var(&o.Git, "git", "About git contexts: branch=,single-branch=,depth=,recurse-submodules=,insecure-skip-tls=")
	f.StringVar(&o.dir, "kaniko-dir", "/kaniko", "Directory with .docker/config.json and ssl/certs (also $KANIKO_DIR)")
	f.StringVar(&o.cache, "cache", "", "false executes every step; the cache is den's store")
	f.Lookup("cache").NoOptDefVal = "true"
	o.bindRegistry(f)
	o.bindLog(f)
	o.ignored.flags(f, "cache-repo", "cache-dir", "cache-ttl", "snapshot-mode", "snapshotMode", "image-fs-extract-retry", "image-download-retry")
	o.ignored.toggles(f, "no-push-cache", "cache-copy-layers", "cache-run-layers", "compressed-caching", "use-new-run",
		"force", "force-build-metadata", "skip-unused-stages", "cleanup", "pre-cleanup", "preserve-context", "materialize",
		"ignore-var-run", "whitelist-var-run")
}

// bindRegistry binds what executor, push and warmer have in common.
func (o *kanikoOptions) bindRegistry(f *pflag.FlagSet) {
	r := &o.Registry
	list := func(to *[]string, name, usage string) { f.Var(listFlag{to}, name, usage) }
	f.BoolVar(&r.Insecure, "insecure", false, "Push by plain HTTP or with any certificate")
	f.BoolVar(&r.InsecurePull, "insecure-pull", false, "Pull by plain HTTP or with any certificate")
	f.BoolVar(&r.SkipTLSVerify, "skip-tls-verify", false, "Push with any certificate")
	f.BoolVar(&r.SkipTLSVerifyPull, "skip-tls-verify-pull", false, "Pull with any certificate")
	list(&r.InsecureRegistries, "insecure-registry", "Registry to speak plain HTTP with (repeatable)")
	list(&r.SkipTLSVerifyRegistries, "skip-tls-verify-registry", "Registry that may show any certificate (repeatable)")
	list(&r.Certificates, "registry-certificate", "Authority of a registry: HOST=FILE (repeatable)")
	list(&r.ClientCertificates, "registry-client-cert", "Client certificate for a registry: HOST=CERT,KEY (repeatable)")
	list(&r.Mirrors, "registry-mirror", "Mirror of docker.io (repeatable; also $KANIKO_REGISTRY_MIRROR)")
	list(&r.Maps, "registry-map", "Mirrors of registries: A=B;C=D (repeatable; also $KANIKO_REGISTRY_MAP)")
	f.BoolVar(&r.SkipDefaultFallback, "skip-default-registry-fallback", false, "Ask only the mirrors of a registry that has some")
	list(&o.helpers, "credential-helpers", "Ask these for passwords (env, google, ecr, acr, gitlab; default all, empty none)")
	f.IntVar(&r.PushRetry, "push-retry", 0, "Times that a push is tried again")
	f.BoolVar(&r.IgnoreImmutableTags, "push-ignore-immutable-tag-errors", false, "Take it for success that an immutable tag exists")
}

func (o *kanikoOptions) bindLog(f *pflag.FlagSet) {
	f.StringVarP(&o.log.Verbosity, "verbosity", "v", "info", "Log level (trace, debug, info, warn, error, fatal, panic)")
	f.StringVar(&o.log.Format, "log-format", "color", "Log format (text, color, json)")
	f.BoolVar(&o.log.Timestamp, "log-timestamp", false, "Timestamp in log output")
}

// complete adds what the environment says to what was typed.
func (o *kanikoOptions) complete() error {
	r := &o.Registry
	if v := os.Getenv("KANIKO_REGISTRY_MIRROR"); v != "" {
		r.Mirrors = append(r.Mirrors, v)
	}
	if v := os.Getenv("KANIKO_REGISTRY_MAP"); v != "" {
		r.Maps = append(r.Maps, v)
	}
	if v := os.Getenv("KANIKO_NO_PUSH"); v != "" {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return &usageError{"invalid value (true/false) for KANIKO_NO_PUSH environment variable"}
		}
		o.NoPush = on
	}
	if o.cache != "" {
		on, err := strconv.ParseBool(o.cache)
		if err != nil {
			return &usageError{"invalid argument " + strconv.Quote(o.cache) + ` for "--cache" flag`}
		}
		if o.NoCache = !on; on {
			o.ignored.names = append(o.ignored.names, "cache")
		}
	}
	if o.helpers != nil {
		r.CredentialHelpers = []string{} // given, perhaps empty
		for _, h := range o.helpers {
			r.CredentialHelpers = append(r.CredentialHelpers, strings.Split(h, ",")...)
		}
	}
	return nil
}
