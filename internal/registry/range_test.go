package registry

import (
	"net/http"
	"testing"
)

func TestRangeEndIsAPlaceInABlob(t *testing.T) {
	for said, want := range map[string]int64{
		"0-0": 0, "0-9": 10, "bytes=0-9": 10, "0-9223372036854775806": 9223372036854775807,
		"": -1, "9": -1, "0--5": -1, "0-9223372036854775807": -1, "0-9223372036854775808": -1,
	} {
		n, ok := rangeEnd(http.Header{"Range": {said}})
		if !ok {
			n = -1
		}
		if n != want || ok && n < 0 {
			t.Errorf("%q: %d, want %d", said, n, want)
		}
	}
}
