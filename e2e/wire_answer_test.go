package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// showAnswer writes an answer as the transcripts have it.
func showAnswer(resp *http.Response, data []byte, show string) string {
	var out strings.Builder
	fmt.Fprintln(&out, strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Content-Type"))))
	if stat, err := base64.StdEncoding.DecodeString(resp.Header.Get("X-Docker-Container-Path-Stat")); err == nil && len(stat) > 0 {
		fmt.Fprintf(&out, "%s\n", stat)
	}
	var failed struct{ Message *string }
	var value any
	switch {
	case json.Unmarshal(data, &failed) == nil && failed.Message != nil:
		fmt.Fprintln(&out, *failed.Message)
	case show == "keys" && json.Unmarshal(data, &value) == nil:
		showKeys(&out, "", value)
	case show == "body" && showValues(&out, data):
	case resp.Header.Get("Content-Type") == "application/x-tar" && showTar(&out, data):
	case strings.HasSuffix(resp.Header.Get("Content-Type"), "-stream") && showFrames(&out, data):
	default:
		text := string(bytes.TrimSpace(data))
		if len(text) > 200 {
			text = text[:200] + "..."
		}
		if text != "" {
			fmt.Fprintln(&out, text)
		}
	}
	return out.String()
}

// showKeys lists the names of an object's fields, and of those in it; of a list's only those of the first.
func showKeys(w io.Writer, path string, value any) {
	switch v := value.(type) {
	case []any:
		if len(v) > 0 {
			showKeys(w, path+"[]", v[0])
		}
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		fmt.Fprintf(w, "%s: %s\n", strings.TrimPrefix(path, "."), strings.Join(keys, " "))
		for _, k := range keys {
			showKeys(w, path+"."+k, v[k])
		}
	}
}

// showFrames shows what each stream said, as the order of two is nobody's promise; a terminal has no frames.
func showFrames(w io.Writer, data []byte) bool {
	var streams [3]strings.Builder
	for len(data) > 0 {
		if len(data) < 8 || data[0] > 2 || data[1] != 0 || uint64(len(data)-8) < uint64(binary.BigEndian.Uint32(data[4:])) {
			return false
		}
		n := 8 + binary.BigEndian.Uint32(data[4:])
		fmt.Fprintf(&streams[data[0]], "%d> %q\n", data[0], data[8:n])
		data = data[n:]
	}
	for i := range streams {
		_, _ = io.WriteString(w, streams[i].String())
	}
	return true
}

// showTar lists an archive: each name with its type, mode and owner, and the size of a file.
func showTar(w io.Writer, data []byte) bool {
	var lines []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return false
		}
		line := fmt.Sprintf("%c %04o %d:%d %s", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		lines = append(lines, settled(line))
	}
	slices.Sort(lines)
	fmt.Fprintln(w, strings.Join(lines, "\n"))
	return true
}

// showValues shows JSON without what differs from run to run and from machine to machine; how far something has come is left out.
func showValues(w io.Writer, data []byte) bool {
	var out strings.Builder
	for d := json.NewDecoder(bytes.NewReader(bytes.ReplaceAll(data, []byte{0x1e}, nil))); ; {
		d.UseNumber()
		var value any
		switch err := d.Decode(&value); {
		case err == io.EOF:
			_, _ = io.WriteString(w, out.String())
			return true
		case err != nil:
			return false
		}
		if line := asMap(value); line["progressDetail"] != nil && line["id"] != nil && !slices.Contains(ends, fmt.Sprint(line["status"])) {
			continue
		}
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(false)
		_ = e.Encode(settledValue("", value)) // into memory
	}
}

// ends is how far a layer comes.
var ends = []string{"Pushed", "Layer already exists", "Pull complete", "Already exists"}

func asMap(v any) map[string]any { m, _ := v.(map[string]any); return m }

var (
	ofAnySize = regexp.MustCompile(`(?i)size$|^(SizeRw|SizeRootFs|SpaceReclaimed|Reclaimable|Pid)$`)
	ofAnyRun  = regexp.MustCompile(`den-e2e-\d+|^/proc/\d+|^/var/run/docker/netns`)
	anyWhile  = regexp.MustCompile(`Less than a second|About a minute|\d+ (seconds?|minutes)`)
	anyMAC    = regexp.MustCompile(`^..(:..){5}$`)
)

// settledValue is a JSON value with words for times, sizes and paths.
func settledValue(key string, value any) any {
	switch v := value.(type) {
	case map[string]any:
		for k, one := range v {
			v[k] = settledValue(k, one)
		}
	case []any:
		for i, one := range v {
			v[i] = settledValue(key, one)
		}
		if len(v) > 0 && asMap(v[0])["Kind"] != nil { // changes: dockerd has siblings in no order
			slices.SortFunc(v, func(a, b any) int { return strings.Compare(fmt.Sprint(asMap(a)["Path"]), fmt.Sprint(asMap(b)["Path"])) })
		}
	case string:
		switch {
		case ofAnyRun.MatchString(v):
			return "<path>"
		case key == "execDuration":
			return "<time>"
		case key == "Status":
			return anyWhile.ReplaceAllString(v, "<time>")
		case anyMAC.MatchString(v) && !strings.HasPrefix(v, "02:42:"):
			return "<any>"
		}
	case json.Number:
		switch n, err := v.Int64(); {
		case err == nil && n > 1_500_000_000:
			return "<time>"
		case err == nil && n > 0 && ofAnySize.MatchString(key):
			return "<size>"
		}
	}
	return value
}
