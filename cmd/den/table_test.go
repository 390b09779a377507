package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"den/internal/engine"
)

func TestTableIsDockers(t *testing.T) {
	rows := []map[string]any{{"ID": "1", "Name": "one", "Extra": "x"}, {"ID": "2", "Name": "two", "Extra": "y"}}
	print := func(format string, quiet bool) (string, error) {
		var b strings.Builder
		tb := table{columns: []column{{"ID", "SOME ID"}, {"Name", "NAME"}}, headers: map[string]string{"Extra": "EXTRA"}, format: format, quiet: quiet, id: "ID"}
		err := tb.print(&b, rows)
		return b.String(), err
	}
	for format, want := range map[string]string{
		"":                               "SOME ID   NAME\n1         one\n2         two\n",
		"table":                          "SOME ID   NAME\n1         one\n2         two\n",
		`table {{.Extra}}\t{{.ID}}`:      "EXTRA     SOME ID\nx         1\ny         2\n",
		`{{.ID}}-{{upper .Name}}`:        "1-ONE\n2-TWO\n",
		`{{.ID}}\t{{.Name}}`:             "1\tone\n2\ttwo\n",
		"json":                           `{"Extra":"x","ID":"1","Name":"one"}` + "\n" + `{"Extra":"y","ID":"2","Name":"two"}` + "\n",
		`{{json .Name}}`:                 "\"one\"\n\"two\"\n",
		`{{join (split .Name "o") "0"}}`: "0ne\ntw0\n",
		`{{truncate .Name 2}}{{pad .ID 1 1}}|{{title .Name}}`: "on 1 |One\ntw 2 |Two\n",
	} {
		got, err := print(format, false)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%q: %v %s", format, err, d)
		}
	}
	if got, err := print("", true); got != "1\n2\n" || err != nil {
		t.Errorf("quiet is %q, %v", got, err)
	}
	for _, format := range []string{"{{.Nope}}", "{{.ID", "{{nope .ID}}"} {
		_, err := print(format, false)
		var usage *usageError
		if !errors.As(err, &usage) {
			t.Errorf("%q: %v", format, err)
		}
	}
}

func TestNearestFlagIsNamedUnlessItIsFar(t *testing.T) {
	cmd := newRun(&globals{}, streams{})
	for name, want := range map[string]string{
		"interactiv": "interactive", "volum": "volume", "envfile": "env-file", "memroy": "memory", "zzzzzzzzzz": "", "root": "",
	} {
		if got := nearestFlag(cmd.Flags(), name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestContainersAreFilteredAsDockerDoes(t *testing.T) {
	list := []engine.Summary{
		{ID: "aaa1", Name: "web-1", Image: "nginx:latest", Status: "running", Labels: map[string]string{"tier": "web", "x": ""}, ConfigDigest: "sha256:0123456789abcdef"},
		{ID: "bbb2", Name: "db", Image: "example.com/postgres", Status: "exited", ExitCode: 3, Volumes: []string{"data"}},
		{ID: "ccc3", Name: "web-10", Image: "box", Status: "created"},
	}
	for filter, want := range map[string]string{
		"":                       "web-1",
		"name=web":               "web-1",
		"status=exited":          "db",
		"exited=3":               "db",
		"exited=0":               "",
		"status=created":         "web-10",
		"label=tier":             "web-1",
		"label=tier=web":         "web-1",
		"label=tier=db":          "",
		"id=aaa":                 "web-1",
		"id=a1":                  "",
		"ancestor=nginx":         "web-1",
		"ancestor=0123456789abc": "web-1",
		"ancestor=01":            "",
	} {
		o := &psOptions{last: -1}
		if filter != "" {
			o.filters = []string{filter}
		}
		if got := chosenNames(t, o, list); got != want {
			t.Errorf("%s: %s, want %s", filter, got, want)
		}
	}
	for want, o := range map[string]*psOptions{
		"web-1 db web-10": {all: true, last: -1},
		"web-1":           {latest: true},
		"web-1 db":        {last: 2},
		"db":              {all: true, last: -1, filters: []string{"volume=data"}},
		"web-10":          {all: true, last: -1, filters: []string{"name=^/web-10$"}},
		"web-1 web-10":    {all: true, last: -1, filters: []string{"name=^web"}},
		"web-1 db ":       {all: true, last: -1, filters: []string{"name=db", "name=web-1$"}},
	} {
		if got := chosenNames(t, o, list); got != strings.TrimSpace(want) {
			t.Errorf("%+v: %s, want %s", o, got, want)
		}
	}
}

func chosenNames(t *testing.T, o *psOptions, list []engine.Summary) string {
	t.Helper()
	filters, err := parseFilters(o.filters)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range o.chosen(list, filters) {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

func TestTimesAreReadAsDockerReadsThem(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"":                     {},
		"10m":                  now.Add(-10 * time.Minute),
		"1700000000":           time.Unix(1700000000, 0),
		"1700000000.5":         time.Unix(1700000000, 5e8),
		"2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02":           time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		got, err := parseTime("since", s, now)
		if !got.Equal(want) || err != nil {
			t.Errorf("%q is %v, %v", s, got, err)
		}
	}
	if _, err := parseTime("since", "yesterday", now); err == nil {
		t.Error("yesterday is a time")
	}
}
