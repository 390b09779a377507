package dockerapi

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"

	"den/internal/build"
	"den/internal/oci"
	"den/internal/progress"
)

// buildLines shows a build as the classic builder does, which clients parse: "Step 1/3 : FROM
// ...", the steps' output, "Successfully built ID".
type buildLines struct {
	*lines
	quiet bool
	// steps are those that have been announced. The solver tells of one at a time, or this
	// sink's lock would be needed for it.
	steps map[string]bool
}

// stepName takes a vertex's name apart: "[stage 2/3] RUN true".
var stepName = regexp.MustCompile(`^\[(?:\S+ )?(\d+)/(\d+)\] (.*)$`)

// layerID is how transfers of layers are named.
var layerID = regexp.MustCompile(`^[0-9a-f]{12}$`)

// Event shows what the classic builder has a word for.
func (b *buildLines) Event(e progress.Event) {
	if b.quiet {
		return
	}
	switch {
	case e.Vertex != nil:
		b.vertex(e.Vertex)
	case e.Log != nil:
		b.send(progressLine{Stream: string(e.Log.Data)})
	case e.Status != nil && layerID.MatchString(e.Status.ID):
		b.lines.Event(e)
	case e.Warning != nil:
		b.send(progressLine{Stream: "[Warning] " + string(e.Warning.Short) + "\n"})
	}
}

func (b *buildLines) vertex(v *progress.Vertex) {
	m := stepName.FindStringSubmatch(v.Name)
	if m == nil || v.Started == nil {
		return
	}
	if b.first("step " + string(v.Digest)) {
		b.send(progressLine{Stream: fmt.Sprintf("Step %s/%s : %s\n", m[1], m[2], m[3])})
	}
	if v.Completed == nil || v.Error != "" || !b.first("end "+string(v.Digest)) {
		return
	}
	if v.Cached {
		b.send(progressLine{Stream: " ---> Using cache\n"})
	}
	b.send(progressLine{Stream: " ---> " + short(oci.Digest(v.Digest)) + "\n"})
}

// first says whether key was never asked for.
func (b *buildLines) first(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := b.steps[key]
	b.steps[key] = true
	return !said
}

// done tells the image's ID, in each of the ways that clients look for it.
func (b *buildLines) done(res *build.Response, tags []string) {
	if b.quiet {
		b.send(progressLine{Stream: string(res.ImageID) + "\n"})
		return
	}
	b.send(progressLine{Aux: map[string]string{"ID": string(res.ImageID)}})
	b.send(progressLine{Stream: "Successfully built " + short(res.ImageID) + "\n"})
	for _, t := range tags {
		b.send(progressLine{Stream: "Successfully tagged " + withTag(t) + "\n"})
	}
}

// fail says what went wrong, with the exit code of a step that failed.
func (b *buildLines) fail(err error) error {
	var exit *gwpb.ExitError
	if !errors.As(err, &exit) || exit.ExitCode == gwpb.UnknownExitStatus {
		if statusOf(err) == http.StatusInternalServerError && len(bkerrdefs.Sources(err)) > 0 {
			err = invalid("%v", err) // the Dockerfile's fault
		}
		return b.lines.fail(err)
	}
	text := strings.TrimSpace(err.Error())
	b.send(progressLine{ErrorDetail: &errorDetail{Code: int(exit.ExitCode), Message: text}, Error: text})
	return nil
}
