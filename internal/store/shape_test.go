package store

import (
	"regexp"
	"strings"
	"testing"
)

// TestShapesAreWhatTheirExpressionsSay compares each shape with the regular
// expression that the format's document would write.
func TestShapesAreWhatTheirExpressionsSay(t *testing.T) {
	for _, c := range []struct {
		name       string
		shape      shape
		expression string
	}{
		{"container id", plainContainerID, `^[a-z0-9]{8,64}$`},
		{"name", plainName, `^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`},
		{"engine id", plainEngineID, `^[A-Za-z0-9][A-Za-z0-9_-]{7,63}$`},
		{"scope", plainScope, `^[A-Za-z0-9][A-Za-z0-9._/@:-]{0,127}$`},
		{"key", plainKey, `^[a-z0-9][a-z0-9._-]{0,127}$`},
	} {
		want := regexp.MustCompile(c.expression)
		matched, refused := 0, 0
		for n := range 300 {
			for b := range 256 {
				for _, at := range []int{0, n / 2, n - 1} {
					if at < 0 || n > 9 && n != 63 && n != 64 && n != 65 && n < 126 || n > 130 && n < 253 {
						continue
					}
					s := strings.Repeat("a", at) + string([]byte{byte(b)}) + strings.Repeat("a", n-at)
					if got := c.shape.matches(s); got != want.MatchString(s) {
						t.Fatalf("%s %q: %v, want %v", c.name, s, got, !got)
					} else if got {
						matched++
					} else {
						refused++
					}
				}
			}
		}
		if c.shape.matches("") || matched == 0 || refused == 0 {
			t.Errorf("%s: %d matched, %d refused", c.name, matched, refused)
		}
	}
}
