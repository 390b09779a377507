package filter

import "embed"

//go:embed programs/amd64/*.bpf
var programs embed.FS
