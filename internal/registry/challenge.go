package registry

import (
	"net/http"
	"strings"
)

const maxChallenges = 16

// A challenge is one way to authenticate that a WWW-Authenticate header offers
// (RFC 9110 section 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// pickChallenge returns the best challenge of a response that we can answer:
// bearer before basic. It returns nil if there is none.
func pickChallenge(h http.Header) *challenge {
	var basic *challenge
	for _, c := range parseChallenges(h.Values("WWW-Authenticate")) {
		switch {
		case c.scheme == "bearer" && c.params["realm"] != "":
			return &c
		case c.scheme == "basic" && basic == nil:
			basic = &c
		}
	}
	return basic
}

// parseChallenges parses headers of any number of challenges each. It stops
// where a header no longer makes sense and keeps what came before.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		for h != "" && len(out) < maxChallenges {
			scheme, rest := cutToken(strings.TrimLeft(h, " \t,"))
			if scheme == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			h = c.parseParams(rest)
			out = append(out, c)
		}
	}
	return out
}

// parseParams parses "key=value, ..." and returns what follows: nothing, or
// the next challenge.
func (c *challenge) parseParams(s string) string {
	for {
		s = strings.TrimLeft(s, " \t,")
		key, rest := cutToken(s)
		rest = strings.TrimLeft(rest, " \t")
		if key == "" || !strings.HasPrefix(rest, "=") {
			if strings.HasPrefix(s, "=") { // padding of a token68
				return ""
			}
			return s
		}
		var value string
		rest = strings.TrimLeft(rest[1:], " \t")
		if strings.HasPrefix(rest, `"`) {
			value, rest = cutQuoted(rest[1:])
		} else {
			value, rest = cutToken(rest)
		}
		if key = strings.ToLower(key); c.params[key] == "" {
			c.params[key] = value
		}
		s = rest
	}
}

// cutToken cuts the leading token (RFC 9110 section 5.6.2) off s. It takes in
// the slashes and colons that some registries leave unquoted in URLs.
func cutToken(s string) (token, rest string) {
	i := 0
	for i < len(s) && s[i] > ' ' && s[i] < 0x7f && !strings.ContainsRune(`",;=\`, rune(s[i])) {
		i++
	}
	return s[:i], s[i:]
}

// cutQuoted cuts a quoted string off s, whose opening quote is gone already.
func cutQuoted(s string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
