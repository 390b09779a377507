//go:build tools

package compose5

import _ "github.com/docker/compose/v5/cmd"
