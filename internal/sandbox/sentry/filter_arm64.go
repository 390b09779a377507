package sentry

import "embed"

//go:embed filters/arm64/*.bpf
var compiledFilters embed.FS
