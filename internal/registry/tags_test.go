package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lists serves pages of tags: each body with a link to the next.
func lists(pages ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/tags/list") {
			w.WriteHeader(http.StatusOK)
			return
		}
		n := 0
		if last := r.URL.Query().Get("last"); last != "" {
			_, _ = fmt.Sscan(last, &n)
		}
		if n+1 < len(pages) {
			w.Header().Set("Link", fmt.Sprintf(`<http://elsewhere.example.com/v2/app/tags/list?last=%d&n=2>; rel="next"`, n+1))
		}
		_, _ = fmt.Fprint(w, pages[n])
	})
}

func TestTagsAreListedPageByPage(t *testing.T) {
	host := serve(t, lists(`{"tags":["1","2"]}`, `{"tags":["3"]}`, `{"tags":["3","latest"]}`))
	got, err := newBench(t, nil).Tags(t.Context(), host+"/app")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"1", "2", "3", "latest"}, got); d != "" {
		t.Error(d)
	}
}

func TestHostileListsOfTagsAreRefused(t *testing.T) {
	endless := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", `</v2/app/tags/list?last=x>; rel="next"`)
		_, _ = fmt.Fprint(w, `{"tags":["same"]}`)
	})
	many := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		_, _ = fmt.Sscan(r.URL.Query().Get("last"), &n)
		w.Header().Set("Link", fmt.Sprintf(`</v2/app/tags/list?last=%d>; rel="next"`, n+1))
		_, _ = fmt.Fprintf(w, `{"tags":["t%d"]}`, n)
	})
	for name, c := range map[string]struct {
		h    http.Handler
		want string
	}{
		"the same page for ever": {endless, "without end"},
		"pages without end":      {many, "pages"},
		"a page without end":     {lists(`{"tags":["` + strings.Repeat("x", 5<<20) + `"]}`), "more than 4194304 bytes"},
		"not JSON":               {lists("<html>"), "invalid character"},
		"a tag that is a path":   {lists(`{"tags":["../../x"]}`), "is none"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := newBench(t, nil).Tags(t.Context(), serve(t, c.h)+"/app"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
