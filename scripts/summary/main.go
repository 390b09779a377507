// Command summary prints what `go test -json` says on its standard input as go
// test itself prints it, then how many tests passed, failed and were skipped,
// and why. It fails if a test failed, or was skipped for a reason that the file
// named by its first argument forbids, one regular expression a line. Of
// tests that match the second, if there is one, it also prints what they log
// when they pass.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// An event is a line of `go test -json` (see go doc test2json).
type event struct {
	Action, Package, Test, Output string
}

func main() {
	if len(os.Args) != 2 && len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go test -json ... | summary FILE [SHOWN]")
		os.Exit(2)
	}
	var shown *regexp.Regexp
	forbidden, err := readReasons(os.Args[1])
	if err == nil && len(os.Args) == 3 {
		shown, err = regexp.Compile(os.Args[2])
	}
	if err == nil {
		err = run(os.Stdin, os.Stdout, forbidden, shown)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
}

// readReasons reads the beginnings of reasons; a # begins a comment line.
func readReasons(file string) ([]*regexp.Regexp, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []*regexp.Regexp
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		re, err := regexp.Compile("^(?:" + line + ")")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, re)
	}
	return out, nil
}

// A summary counts tests; subtests count, what only holds subtests does too.
type summary struct {
	out     io.Writer
	output  map[string]*bytes.Buffer // of tests that have not ended
	passed  int
	failed  []string
	skipped map[string]int // by reason
	broken  bool           // a package failed
	shown   *regexp.Regexp // tests that are printed though they pass, or nil
}

func run(in io.Reader, out io.Writer, forbidden []*regexp.Regexp, shown *regexp.Regexp) error {
	s := &summary{out: out, shown: shown, output: map[string]*bytes.Buffer{}, skipped: map[string]int{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			s.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", s.passed, len(s.failed), s.skips())
	return s.verdict(forbidden)
}

func (s *summary) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil { // of the go command itself
		_, _ = s.out.Write(line)
		return
	}
	if e.Test == "" {
		s.ofPackage(e)
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		if s.output[key] == nil {
			s.output[key] = &bytes.Buffer{}
		}
		s.output[key].WriteString(e.Output)
	case "pass":
		s.passed++
		s.show(key, e.Test)
		delete(s.output, key)
	case "fail":
		s.failed = append(s.failed, key)
		s.print(key)
	case "skip":
		s.skipped[reason(s.output[key])]++
		delete(s.output, key)
	}
}

// ofPackage prints the lines about packages, and what tests were at when their
// process died.
func (s *summary) ofPackage(e event) {
	switch e.Action {
	case "output", "build-output":
		if e.Output != "PASS\n" {
			fmt.Fprint(s.out, e.Output)
		}
	case "fail", "build-fail":
		s.broken = true
		for _, key := range slices.Sorted(maps.Keys(s.output)) {
			if strings.HasPrefix(key, e.Package+" ") {
				s.print(key)
			}
		}
	}
}

func (s *summary) print(key string) {
	if b := s.output[key]; b != nil {
		_, _ = s.out.Write(b.Bytes())
		delete(s.output, key)
	}
}

// show prints what a test logged, without the frame, if that is wanted.
func (s *summary) show(key, test string) {
	b := s.output[key]
	if s.shown == nil || b == nil || !s.shown.MatchString(test) {
		return
	}
	fmt.Fprintln(s.out, "passed:", test)
	for line := range strings.Lines(b.String()) {
		if at := place.FindString(line); at != "" {
			fmt.Fprint(s.out, "    ", strings.TrimPrefix(line, at))
		}
	}
}

var place = regexp.MustCompile(`^\s*\S+\.go:\d+: `)

// reason is what a test said when it skipped.
func reason(output *bytes.Buffer) string {
	if output == nil {
		return ""
	}
	for line := range strings.Lines(output.String()) {
		if at := place.FindString(line); at != "" {
			return strings.TrimSpace(strings.TrimPrefix(line, at))
		}
	}
	return ""
}

func (s *summary) skips() (n int) {
	for _, count := range s.skipped {
		n += count
	}
	return n
}

// verdict prints the reasons of skips and says what must not be.
func (s *summary) verdict(forbidden []*regexp.Regexp) error {
	var wrong []string
	for _, why := range slices.Sorted(maps.Keys(s.skipped)) {
		fmt.Fprintf(s.out, "  skipped %d: %s\n", s.skipped[why], why)
		if slices.ContainsFunc(forbidden, func(re *regexp.Regexp) bool { return re.MatchString(why) }) {
			wrong = append(wrong, fmt.Sprintf("%q", why))
		}
	}
	switch {
	case len(s.failed) > 0:
		return fmt.Errorf("failed: %s", strings.Join(s.failed, ", "))
	case s.broken:
		return errors.New("a package failed")
	case s.passed == 0:
		return errors.New("no test ran")
	case len(wrong) > 0:
		return fmt.Errorf("skipped, although scripts/deps.sh should have seen to it: %s", strings.Join(wrong, ", "))
	}
	return nil
}
