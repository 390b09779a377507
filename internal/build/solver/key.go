package solver

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// The recipes of the two keys. They are part of the store's format: changing
// one orphans every record, so the version in them changes with it, and
// TestKeyRecipe holds them still.
const (
	definitionVersion = "den1"
	contentVersion    = "den1c"
)

// A keyDoc is hashed as JSON, which keeps the parts apart whatever bytes a
// selector has.
type keyDoc struct {
	Version string     `json:"v"`
	Op      oci.Digest `json:"op"`
	Inputs  []keyInput `json:"in,omitempty"`
}

type keyInput struct {
	Key      oci.Digest `json:"key,omitempty"`     // definition key of the input
	Content  oci.Digest `json:"content,omitempty"` // of the selected part
	Result   oci.Digest `json:"result,omitempty"`  // ID, where no content is computed
	Index    int        `json:"index,omitempty"`
	Selector string     `json:"selector,omitempty"`
}

func (d keyDoc) digest() oci.Digest {
	raw, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings and integers always marshal
	}
	return digest.FromBytes(raw)
}

// input returns how input i is looked at.
func (m *CacheMap) input(i int) InputKey {
	if i < len(m.Inputs) {
		return m.Inputs[i]
	}
	return InputKey{}
}

// definitionKey names a vertex's results by what would make them. It takes
// the definition keys of the inputs.
func definitionKey(m *CacheMap, edges []edge, inputs []oci.Digest) oci.Digest {
	d := keyDoc{Version: definitionVersion, Op: m.Digest}
	for i, in := range inputs {
		d.Inputs = append(d.Inputs, keyInput{Key: in, Index: edges[i].index, Selector: m.input(i).Selector})
	}
	return d.digest()
}
