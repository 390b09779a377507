//go:build tools

// Package compose5 pins Compose v5, which the tests build and drive den with.
package compose5

import _ "github.com/docker/compose/v5/cmd"
