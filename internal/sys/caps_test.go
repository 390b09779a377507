package sys

import "testing"

// Where there is no /proc the kernel says the same.
func TestRightsAreKnownWithoutProc(t *testing.T) {
	want, err := SelfStatus()
	if err != nil {
		t.Skipf("needs /proc: %v", err)
	}
	if got := askStatus(); got != want {
		t.Errorf("%+v, /proc says %+v", got, want)
	}
}
