package dockerfile

import (
	"slices"
	"strings"
	"testing"
)

func TestBasesAreTheImagesThatStagesBeginWith(t *testing.T) {
	const text = `# syntax=docker/dockerfile:1
ARG REGISTRY=docker.io/library
ARG TAG
FROM $REGISTRY/golang:${TAG:-1.26} AS Build
FROM build AS test
FROM scratch
COPY --from=build / /
FROM ${REGISTRY}/golang:1.26
FROM --platform=linux/arm64 debian
`
	for _, test := range []struct {
		args, want []string
	}{
		{nil, []string{"docker.io/library/golang:1.26", "debian"}},
		{[]string{"REGISTRY=mirror", "TAG=2"}, []string{"mirror/golang:2", "mirror/golang:1.26", "debian"}},
	} {
		got, err := Bases(strings.NewReader(text), test.args)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, %v", test.args, got, err)
		}
	}
	for _, bad := range []string{"", "FROM", "NONSENSE x", "FROM ${x"} {
		if got, err := Bases(strings.NewReader(bad), nil); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func FuzzBases(f *testing.F) {
	f.Add("ARG A=b\nFROM $A\n", "A=c")
	f.Fuzz(func(_ *testing.T, text, arg string) { _, _ = Bases(strings.NewReader(text), []string{arg}) })
}
