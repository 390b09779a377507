package display

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

const (
	// tailLines is how much of a failed step's output is shown, as in BuildKit's plain mode.
	tailLines = 10
	// tailBytes bounds what is kept of a step that writes without an end of line.
	tailBytes = 16 << 10
)

// quiet shows nothing but the last output of steps that failed: who asked for
// no progress still wants to know why.
type quiet struct{ out io.Writer }

// UpdateFrom is that of progressui.Display.
func (q quiet) UpdateFrom(_ context.Context, ch chan *client.SolveStatus) ([]client.VertexWarning, error) {
	tails := map[digest.Digest][]byte{}
	var failed []*client.Vertex
	for s := range ch {
		for _, l := range s.Logs {
			tails[l.Vertex] = tail(append(tails[l.Vertex], l.Data...))
		}
		for _, v := range s.Vertexes {
			switch {
			case v.Completed == nil:
			case v.Error == "":
				delete(tails, v.Digest)
			case !strings.HasSuffix(v.Error, context.Canceled.Error()):
				failed = append(failed, v)
			}
		}
	}
	for _, v := range failed {
		text := bytes.TrimRight(tails[v.Digest], "\n")
		if len(text) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(q.out, "------\n > %s:\n%s\n------\n", v.Name, text); err != nil {
			return nil, err
		}
		delete(tails, v.Digest) // a vertex may be reported twice
	}
	return nil, nil
}

// tail is the end of b: its last lines, and no more than tailBytes.
func tail(b []byte) []byte {
	end := bytes.TrimRight(b, "\n")
	from := len(end)
	for range tailLines {
		if from = bytes.LastIndexByte(end[:from], '\n'); from < 0 {
			break
		}
	}
	return b[max(from+1, len(b)-tailBytes):]
}
