package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
)

func TestLongLinesAreShownByTheirEnds(t *testing.T) {
	cause := errors.New("unknown instruction: " + strings.Repeat("x", 1<<20) + " exit code: 17")
	line := "FROM " + strings.Repeat("y", 1<<20)
	err := errdefs.WithSource(cause, &errdefs.Source{
		Info:   &pb.SourceInfo{Filename: "Dockerfile", Data: []byte(line + "\nRUN short\n")},
		Ranges: []*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}},
	})
	var shown bytes.Buffer
	err = explain(&shown, err)
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
	text := err.Error()
	if len(text) > longestLine+100 || !strings.HasPrefix(text, "build: unknown instruction") || !strings.HasSuffix(text, "exit code: 17") {
		t.Errorf("%d bytes: %.60s", len(text), text)
	}
	if shown.Len() > 2*longestLine || !strings.Contains(shown.String(), ">>> FROM y") || !strings.Contains(shown.String(), "RUN short\n") {
		t.Errorf("%d bytes: %.60s", shown.Len(), shown.String())
	}
}
