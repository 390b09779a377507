//go:build tools

// Package dockercli pins the docker command, which the tests build and drive den with.
package dockercli

import _ "github.com/docker/cli/cmd/docker"
