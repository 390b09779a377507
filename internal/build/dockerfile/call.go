package dockerfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/solver/pb"
)

// The sub-requests, as the option "requestid" names them.
const (
	RequestLint    = lint.RequestLint
	RequestOutline = "frontend.outline"
	RequestTargets = "frontend.targets"
)

// A Call is the answer of a sub-request: the Dockerfile was looked at, nothing
// was built.
type Call struct {
	// JSON is the answer for programs, Text for people.
	JSON, Text []byte
	// Status is the exit code that the frontend proposes: 1 when lint found
	// something.
	Status int
	// lint is set when the answer is that of a lint.
	lint *lint.LintResults
}

func newCall(dt []byte, meta map[string][]byte) (*Call, error) {
	c := &Call{JSON: dt, Text: meta["result.txt"]}
	status, ok := meta["result.statuscode"]
	if !ok {
		return c, nil
	}
	var err error
	if c.Status, err = strconv.Atoi(string(status)); err != nil {
		return nil, fmt.Errorf("frontend: status code: %w", err)
	}
	// Only lint has a status.
	c.lint = new(lint.LintResults)
	if err := json.Unmarshal(dt, c.lint); err != nil {
		return nil, fmt.Errorf("frontend: lint results: %w", err)
	}
	return c, nil
}

// Print writes the answer as buildx does: text, or JSON when format is "json".
// Dockerfile is the path that findings are shown under; empty keeps the
// frontend's. An error in the Dockerfile that kept lint from its work is
// returned, as text with its source.
func (c *Call) Print(w io.Writer, format, dockerfile string) error {
	if format == "json" {
		return c.printJSON(w)
	}
	if c.lint == nil {
		_, err := w.Write(c.Text)
		return err
	}
	return c.printLint(w, dockerfile)
}

func (c *Call) printJSON(w io.Writer) error {
	_, err := fmt.Fprintln(w, string(bytes.TrimRight(c.JSON, "\n")))
	return err
}

func (c *Call) printLint(w io.Writer, dockerfile string) error {
	named := func(s *pb.SourceInfo) *pb.SourceInfo {
		if s == nil || dockerfile == "" {
			return s
		}
		return &pb.SourceInfo{Filename: dockerfile, Data: s.Data, Language: s.Language, Definition: s.Definition}
	}
	var b bytes.Buffer
	switch n := len(c.lint.Warnings); {
	case n == 1:
		b.WriteString("Check complete, 1 warning has been found!\n")
	case n > 1:
		fmt.Fprintf(&b, "Check complete, %d warnings have been found!\n", n)
	}
	if err := lint.PrintLintViolations(c.JSON, &b, named); err != nil {
		return fmt.Errorf("lint results: %w", err)
	}
	var broken error
	switch {
	case c.lint.Error != nil:
		if len(c.lint.Warnings) > 0 {
			b.WriteByte('\n')
		}
		var text bytes.Buffer
		c.lint.PrintErrorTo(&text, named)
		broken = errors.New(text.String())
	case len(c.lint.Warnings) == 0:
		b.WriteString("Check complete, no warnings found.\n")
	}
	_, err := w.Write(b.Bytes())
	return errors.Join(err, broken)
}
