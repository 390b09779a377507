//go:build tools

// Package compose2 pins Compose v2, which the tests build and drive den with.
package compose2

import _ "github.com/docker/compose/v2/cmd"
