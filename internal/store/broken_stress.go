//go:build stress

package store

import (
	"os"
	"strings"
	"time"
)

// broken says that a step of the protocol is to be left out, by name, because
// $DEN_STORE_BROKEN asks for it.
func broken(step string) bool { return os.Getenv("DEN_STORE_BROKEN") == step }

// lateRescue removes the collector's flag from the object only when it was used
// and named. It dawdles, so that a kill comes in between soon.
func lateRescue(l *lease) {
	time.Sleep(5 * time.Millisecond)
	o := object{kindBlob, l.path[strings.LastIndexByte(l.path, '/')+1:]}
	if rest, ok := strings.CutPrefix(l.path, l.store.path("layers")+"/"); ok {
		parts := strings.Split(rest, "/")
		o = object{kindLayer, parts[0] + "/" + parts[len(parts)-1]}
	}
	_ = os.Remove(l.store.path("condemned", o.flag()))
}
