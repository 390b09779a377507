package dockerapi

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFlagsInEverySpelling(t *testing.T) {
	for _, s := range []string{"1", "true", "True", "TRUE", "yes", "t", " 1 ", "2"} {
		if !isTrue(s) {
			t.Errorf("%q is false", s)
		}
	}
	for _, s := range []string{"", "0", "no", "No", "false", "False", "none", " 0 "} {
		if isTrue(s) {
			t.Errorf("%q is true", s)
		}
	}
	c := &call{query: url.Values{"a": {""}}}
	if c.flagOr("a", true) || !c.flagOr("b", true) {
		t.Error("an empty flag is false, a missing one is what is said")
	}
}

func TestFiltersInBothSpellings(t *testing.T) {
	for in, want := range map[string]filters{
		``:                             {},
		`{}`:                           {},
		`null`:                         {},
		`{"label":{"x":true}}`:         {"label": {"x"}},
		`{"label":["x"]}`:              {"label": {"x"}},
		`{"label":["b","a","b"]}`:      {"label": {"a", "b"}},
		`{"label":{"x":false}}`:        {},
		`{"a":{"x":true},"b":["y"]}`:   {"a": {"x"}, "b": {"y"}},
		`{"a":{}}`:                     {},
		`{"a":null}`:                   {},
		`{"a":["x"],"a":{"y":true}}`:   {"a": {"y"}},
		`{"label":{"com.x=y=z":true}}`: {"label": {"com.x=y=z"}},
	} {
		got, err := parseFilters(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", in, diff)
		}
	}
	for _, in := range []string{`x`, `[]`, `"x"`, `{"a":1}`, `{"a":"x"}`, `{"a":[1]}`, `{"a":{"x":1}}`, `{"a"`, strings.Repeat("[", 100000)} {
		if _, err := parseFilters(in); statusOf(err) != 400 {
			t.Errorf("%.40s: %v, want an invalid argument", in, err)
		}
	}
}

func TestLabelFiltersMustAllHold(t *testing.T) {
	labels := map[string]string{"a": "1", "b": ""}
	for want, f := range map[bool][]filters{
		true:  {{}, {"label": {"a"}}, {"label": {"a=1"}}, {"label": {"a=1", "b"}}, {"label": {"b="}}},
		false: {{"label": {"c"}}, {"label": {"a=2"}}, {"label": {"a", "c"}}, {"label": {"a="}}},
	} {
		for _, f := range f {
			if f.labels("label", labels) != want {
				t.Errorf("%v: want %v", f, want)
			}
		}
	}
}

func TestTimesInEverySpelling(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"":                               {},
		"0":                              {},
		"1795212578":                     time.Unix(1795212578, 0),
		"1795212578.000000001":           time.Unix(1795212578, 1),
		"1795212578.5":                   time.Unix(1795212578, 500_000_000),
		"10m":                            now.Add(-10 * time.Minute),
		"2026-11-21":                     now.Add(-12 * time.Hour),
		"2026-11-21T11:00:00Z":           now.Add(-time.Hour),
		"2026-11-21T11:00:00.5+01:00":    now.Add(-2*time.Hour + time.Second/2),
		"2026-11-21T11:00:00.000000001Z": now.Add(-time.Hour + 1),
	} {
		got, err := timestamp(in, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"x", "1.", "1.x", "1.1234567890", "-", "1e9", "99999999999999999999"} {
		if got, err := timestamp(in, now); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}

func TestBodiesAreBoundedJSON(t *testing.T) {
	type body struct {
		A int
		B string
	}
	for _, tt := range []struct {
		body, contentType string
		want              body
		err               string
	}{
		{body: ``, want: body{}},
		{body: `{"A":1,"Unknown":{"x":[1]}}`, contentType: "application/json", want: body{A: 1}},
		{body: `{"A":1,"A":2}`, contentType: "application/json; charset=utf-8", want: body{A: 2}},
		{body: `{"a":3,"B":"ü\u0000"}`, contentType: "application/json", want: body{A: 3, B: "ü\x00"}},
		{body: `{"A":null}`, contentType: "application/json"},
		{body: `null`, contentType: "application/json"},
		{body: `{"A":"1"}`, contentType: "application/json", err: "invalid JSON: json: cannot unmarshal"},
		{body: `{"A":1}`, contentType: "text/plain", err: "unsupported Content-Type header (text/plain)"},
		{body: `{"A":1}`, err: "malformed Content-Type header"},
		{body: `{"A":1}{}`, contentType: "application/json", err: "unexpected content after JSON"},
		{body: `{"A":1}}`, contentType: "application/json", err: "unexpected content after JSON"},
		{body: `{"A":`, contentType: "application/json", err: "invalid JSON: unexpected EOF"},
		{body: ` `, contentType: "application/json", err: "invalid JSON: EOF"},
		{body: strings.Repeat(" ", maxBody+1), contentType: "application/json", err: "more than"},
		{body: strings.Repeat("[", 1<<20), contentType: "application/json", err: "invalid JSON"},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(tt.body))
		r.Header.Set("Content-Type", tt.contentType)
		var got body
		err := (&call{Request: r}).decode(&got)
		if tt.err == "" && (err != nil || got != tt.want) {
			t.Errorf("%.40q: %+v, %v", tt.body, got, err)
		}
		if tt.err != "" && (statusOf(err) != 400 || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%.40q: %v, want %q", tt.body, err, tt.err)
		}
	}
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"label":{"x":true},"name":["y","("]}`, "name")
	f.Fuzz(func(t *testing.T, in, key string) {
		got, err := parseFilters(in)
		if err != nil {
			if statusOf(err) != 400 {
				t.Fatalf("%q: %v is not the client's fault", in, err)
			}
			return
		}
		got.matches(key, "abc")
		got.labels(key, map[string]string{"a": "b"})
		_, _ = got.boolean(key, false)
	})
}

func FuzzTimestamp(f *testing.F) {
	f.Add("1795212578.5")
	f.Add("2026-11-21T11:00:00Z")
	f.Fuzz(func(t *testing.T, in string) {
		if _, err := timestamp(in, time.Unix(0, 0)); err != nil && statusOf(err) != 400 {
			t.Fatalf("%q: %v is not the client's fault", in, err)
		}
	})
}
