package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestFullDiskIsAnErrorThatSaysWhatHelps(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("write /x: %w", unix.ENOSPC):                                  true,
		fmt.Errorf("write /x: %w", unix.EDQUOT):                                  true,
		fmt.Errorf("the cap: %w: %w", unix.ENOSPC, errdefs.ErrResourceExhausted): false,
		fmt.Errorf("write /x: %w", unix.EIO):                                     false,
	} {
		var b bytes.Buffer
		report(&b, err)
		if strings.Contains(b.String(), "den prune --all --force") != want || strings.Count(b.String(), "\n") != 1 {
			t.Errorf("%v: %q", err, b.String())
		}
	}
}
