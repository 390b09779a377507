//go:build tools

package compose2

import _ "github.com/docker/compose/v2/cmd"
