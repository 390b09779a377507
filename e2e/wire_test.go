package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The transcripts below testdata/wire are requests as they go over the wire, and what is answered:
// the status, the media type and the body; of an error the message alone, of a tar its names, of a multiplexed
// stream what is in it. "keys GET ..." shows which fields an answer has instead, one line for each object, "body GET ..."
// all of the body, without what differs from run to run, and "upgrade POST ..." takes the connection over.
// The second line of a request is its body; "tar" begins an archive's files, NAME TEXT, and what follows an upgrade's body
// is typed. {id} is the last answer's, {now} the time. What
// dockerd of the distribution answers, which speaks API 1.41 at most, what one of today answers (moby, see newerDockerd),
// and what den does, stands side by side: each difference is under "on dockerd:" or "on moby:".
// DEN_E2E_RECORD=DIRECTORY writes down what each says.

// TestWire asks what no client asks, and what clients of other versions do.
func TestWire(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, e *engine) {
		e.startRegistry(t)
		e.must(t, `docker run -d --name up --label k=v -p 127.0.0.1::80 small sleep 10000 &&
docker create --name made small true
docker volume create vol && docker network create net && docker create --name uses -v vol:/v --network net small true`)
		for _, file := range transcripts(t, "wire") {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { e.playWire(t, file) })
		}
	}
	needRoot(t)
	everyDockerd(t, test)
	t.Run("privileged", func(t *testing.T) { t.Parallel(); test(t, newDen(t).serve("privileged")) })
}

// ofAnyMachine finds the number of processors in what is answered.
var ofAnyMachine = regexp.MustCompile(`((?:from 0\.01 to |there are only |available: 0-|<digest> size: ))\d+`)

var pathVersion = regexp.MustCompile(`^[A-Za-z ]+ /v1\.(\d\d)/`)

func (e *engine) playWire(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseTranscript(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var last string
	for _, x := range all {
		if m := pathVersion.FindStringSubmatch(x.command); e.name == "dockerd" && m != nil && m[1] > "41" && m[1] < "57" {
			continue // it knows no such version
		}
		want, other := x.want[e.name]
		if !other {
			want = x.want[""]
		}
		got := ofAnyMachine.ReplaceAllString(settled(e.wire(t, x.command, &last)), "${1}N")
		if record := os.Getenv("DEN_E2E_RECORD"); record != "" { // a directory, to write transcripts from
			f, err := os.OpenFile(filepath.Join(record, e.name+"-"+filepath.Base(file)), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(f, "$ %s\n%s\n", strings.ReplaceAll(x.command, "\n", "\n> "), got)
			f.Close()
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:%d: %s\n%s", file, x.line, x.command, diff)
		}
	}
}
