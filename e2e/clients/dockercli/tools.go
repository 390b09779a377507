//go:build tools

package dockercli

import _ "github.com/docker/cli/cmd/docker"
