package sentry

import "embed"

//go:embed filters/amd64/*.bpf
var compiledFilters embed.FS
