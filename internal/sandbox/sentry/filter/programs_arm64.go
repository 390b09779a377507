package filter

import "embed"

//go:embed programs/arm64/*.bpf
var programs embed.FS
