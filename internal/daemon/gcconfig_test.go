package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCacheBudgetIsThatOfDockerd(t *testing.T) {
	const gib = 1 << 30
	for text, want := range map[string]cacheBudget{
		``:                         {},
		`{}`:                       {},
		`{"registry-mirrors": []}`: {},
		`{"builder": {"gc": {"enabled": true, "defaultKeepStorage": "20GB"}}}`:                                                     {maxBytes: 20 * gib},
		`{"builder": {"gc": {"enabled": false, "defaultKeepStorage": "20GB"}}}`:                                                    {},
		`{"builder": {"gc": {"defaultMaxUsedSpace": "1gb", "defaultKeepStorage": "20GB", "defaultReservedSpace": "1GB"}}}`:         {maxBytes: gib},
		`{"builder": {"gc": {"enabled": true, "defaultMaxUsedSpace": "2GB", "defaultMinFreeSpace": "512mb", "policy": [{}]}}}`:     {2 * gib, gib / 2},
		`{"builder": {"gc": {"enabled": true, "defaultMinFreeSpace": "1GB"}, "entitlements": {"security-insecure": true}}, "a":1}`: {0, gib},
	} {
		file := filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		said := ""
		o := Options{DaemonJSON: file, Notice: func(line string) { said += line }}
		if got := o.cacheBudget(); got != want || said != "" {
			t.Errorf("%s: %+v, want %+v; said %q", text, got, want, said)
		}
	}
	for _, text := range []string{`{"builder": {"gc": {"defaultKeepStorage": "much"}}}`, `{"builder": 1}`} {
		file := filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		said := ""
		o := Options{DaemonJSON: file, Notice: func(line string) { said += line }}
		if got := o.cacheBudget(); got != (cacheBudget{}) || !strings.Contains(said, "builder.gc in "+file+" is ignored") {
			t.Errorf("%s: %+v, said %q", text, got, said)
		}
	}
}
