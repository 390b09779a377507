package dockerapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
)

// maxBody is how long a JSON body may be. Docker knows no limit; the longest that
// real clients send is a few KiB.
const maxBody = 8 << 20

// decode reads the request's JSON body into v. Fields that v does not know are
// ignored, of duplicate ones the last counts, and an empty body leaves v alone: all
// that is docker's. Afterwards the body is at its end.
func (c *call) decode(v any) error {
	if c.Body == nil || c.ContentLength == 0 {
		return nil
	}
	if err := jsonType(c.Header.Get("Content-Type")); err != nil {
		return err
	}
	data, err := io.ReadAll(http.MaxBytesReader(nil, c.Body, maxBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		return invalid("invalid JSON: the body has more than %d bytes", maxBody)
	}
	if err != nil {
		return invalid("read body: %v", err)
	}
	return decodeJSON(data, v)
}

func decodeJSON(data []byte, v any) error {
	if len(data) == 0 {
		return invalid("invalid JSON: got EOF while reading request body")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return invalid("invalid JSON: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return invalid("unexpected content after JSON")
	}
	return nil
}

// jsonType says whether a body with this Content-Type is taken for JSON.
func jsonType(contentType string) error {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return invalid("malformed Content-Type header (%s): %v", contentType, err)
	}
	if media != "application/json" {
		return invalid("unsupported Content-Type header (%s): must be 'application/json'", contentType)
	}
	return nil
}
