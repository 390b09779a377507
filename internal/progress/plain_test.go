package progress_test

import (
	"testing"

	"den/internal/progress"
)

func TestPlainTextNamesNoClass(t *testing.T) {
	for text, want := range map[string]string{
		"pull x: no answer: unavailable":             "pull x: no answer",
		"a: invalid argument\nb: invalid argument\n": "a\nb\n",
		"unavailable":                  "unavailable",
		"open /x: permission denied":   "open /x: permission denied", // the kernel's own word
		"x: unavailable: try it later": "x: unavailable: try it later",
	} {
		if got := progress.Plain(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}
