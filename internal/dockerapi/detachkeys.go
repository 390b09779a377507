package dockerapi

import (
	"bytes"
	"io"
	"strings"
)

// defaultDetachKeys are ctrl-p and ctrl-q.
var defaultDetachKeys = [...]byte{16, 17}

// maxDetachKeys bounds a sequence of keys.
const maxDetachKeys = 64

// parseDetachKeys reads docker's "ctrl-p,ctrl-q": characters and ctrl- with one of @ to _, or DEL.
// Empty is the default.
func parseDetachKeys(text string) ([]byte, bool) {
	if text == "" {
		return defaultDetachKeys[:], true
	}
	var keys []byte
	for key := range strings.SplitSeq(text, ",") {
		control, isControl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case len(key) == 1:
			keys = append(keys, key[0])
		case key == "DEL":
			keys = append(keys, 127)
		case isControl && len(control) == 1 && (control[0] >= 'a' && control[0] <= 'z' || strings.ContainsAny(control, "@[\\]^_")):
			keys = append(keys, control[0]&0x1f)
		default:
			return nil, false
		}
		if len(keys) > maxDetachKeys {
			return nil, false
		}
	}
	return keys, true
}

// A keyReader passes on what is typed until the detach keys are: then it says so and has ended. The
// beginning of a sequence waits for its next key.
type keyReader struct {
	r    io.Reader
	keys []byte
	// held is the beginning of the sequence that was typed last, ready what may be passed on.
	held, ready []byte
	detached    bool
	err         error
}

func (k *keyReader) Read(p []byte) (int, error) {
	for len(k.ready) == 0 {
		if k.err != nil {
			return 0, k.err
		}
		n, err := k.r.Read(p)
		k.take(p[:n])
		if err != nil && k.err == nil {
			k.err = err
			k.ready, k.held = append(k.ready, k.held...), nil
		}
	}
	n := copy(p, k.ready)
	k.ready = k.ready[n:]
	return n, nil
}

func (k *keyReader) take(typed []byte) {
	k.ready = k.ready[:0]
	for _, b := range typed {
		k.held = append(k.held, b)
		for !bytes.HasPrefix(k.keys, k.held) {
			k.ready = append(k.ready, k.held[0])
			k.held = k.held[1:]
		}
		if len(k.held) == len(k.keys) {
			k.detached, k.err = true, io.EOF
			return
		}
	}
}
