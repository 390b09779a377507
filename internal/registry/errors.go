package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	maxErrorBytes   = 64 << 10 // of an error's body that are read
	maxErrorText    = 512      // of a registry's words that are passed on
	maxErrorEntries = 8
)

// An Error is a registry's refusal. It unwraps to a class of errdefs.
type Error struct {
	// Host answered with Status.
	Host   string
	Status int
	// Code is the first error code of the answer in lower case ("denied",
	// "manifest_unknown"), empty if it gave none.
	Code string
	// Message is what the registry said.
	Message string
	// Hint is what to do next, or empty.
	Hint string
	// RetryAfter is how long the registry asks to be left alone.
	RetryAfter time.Duration

	class error
}

func (e *Error) Error() string {
	text := e.Message
	if text == "" {
		text = strings.ToLower(http.StatusText(e.Status))
	}
	if e.Code != "" && e.Code != "unknown" && !strings.HasPrefix(strings.ToLower(text), e.Code) {
		text = e.Code + ": " + text
	}
	text = fmt.Sprintf("%s (%s answered %d)", text, e.Host, e.Status)
	if e.RetryAfter > 0 {
		text += ", retry after " + e.RetryAfter.String()
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap returns the class.
func (e *Error) Unwrap() error { return e.class }

// A LengthError reports a blob that is not as long as its descriptor says.
type LengthError struct {
	Host      string
	Want, Got int64
	// More is set if Got is only how far it was read: there is more.
	More bool
}

func (e *LengthError) Error() string {
	more := ""
	if e.More {
		more = "more than "
	}
	return fmt.Sprintf("%s sends %s%d bytes, the descriptor says %d", e.Host, more, e.Got, e.Want)
}

// Unwrap returns errdefs.ErrDataLoss: what the registry holds is damaged.
func (e *LengthError) Unwrap() error { return errdefs.ErrDataLoss }

// A stallError reports a connection with hardly a sign of life.
type stallError struct{ after time.Duration }

func (e *stallError) Error() string { return fmt.Sprintf("no data for %s, or hardly any", e.after) }
func (e *stallError) Unwrap() error { return errdefs.ErrUnavailable }

// A policyError is a request that we refuse to make, whatever the registry says.
type policyError struct{ text string }

func (e *policyError) Error() string { return e.text }
func (e *policyError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// A finalError is one that no other try will mend: of our own configuration, or
// of a token service that was asked often enough already.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// isFinal reports whether err is told as it is: no retry, nothing to add.
func isFinal(err error) bool {
	var (
		length *LengthError
		policy *policyError
		source *sourceError
		final  *finalError
	)
	return errors.As(err, &length) || errors.As(err, &policy) || errors.As(err, &source) || errors.As(err, &final)
}

// answer turns a response with an unexpected status into an *Error, and closes
// its body.
func answer(resp *http.Response, now time.Time) *Error {
	defer resp.Body.Close()
	e := &Error{Host: resp.Request.URL.Host, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, now)}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // Docker Hub's token service
	}
	if json.Unmarshal(body, &doc) == nil {
		var texts []string
		for _, d := range doc.Errors[:min(len(doc.Errors), maxErrorEntries)] {
			if e.Code == "" {
				e.Code = strings.ToLower(printable(d.Code))
			}
			if d.Message != "" {
				texts = append(texts, d.Message)
			}
		}
		e.Message = printable(strings.Join(texts, "; "))
		if e.Message == "" {
			e.Message = printable(doc.Details)
		}
	} else if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		e.Message = printable(string(body))
	}
	e.class = class(e.Status, e.Code)
	return e
}

// printable makes foreign text fit for a terminal and bounds it.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "..."
	}
	return s
}

// class maps a status to errdefs. The codes tell apart what registries put
// under one status: Docker Hub denies with 401.
func class(status int, code string) error {
	switch code {
	case "denied":
		return errdefs.ErrPermissionDenied
	case "toomanyrequests":
		return errdefs.ErrResourceExhausted
	case "manifest_unknown", "name_unknown", "blob_unknown", "manifest_blob_unknown":
		return errdefs.ErrNotFound
	}
	switch {
	case status == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case status == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case status == http.StatusNotFound:
		return errdefs.ErrNotFound
	case status == http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	case status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented:
		return errdefs.ErrNotImplemented
	case status == http.StatusConflict:
		return errdefs.ErrConflict
	case status == http.StatusRequestTimeout || status >= 500:
		return errdefs.ErrUnavailable
	case status >= 400:
		return errdefs.ErrInvalidArgument
	}
	return errdefs.ErrUnknown
}

// retryAfter reads the Retry-After header: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseInt(v, 10, 32); err == nil {
		return max(0, time.Duration(n)*time.Second)
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now).Round(time.Second))
	}
	return 0
}

// temporary reports whether the same request may succeed a little later.
func temporary(err error) bool {
	var (
		refused  *Error
		dns      *net.DNSError
		record   tls.RecordHeaderError
		alert    tls.AlertError
		cert     *tls.CertificateVerificationError
		hostname x509.HostnameError
	)
	switch {
	case isFinal(err), errors.Is(err, http.ErrSchemeMismatch),
		errors.As(err, &record), errors.As(err, &alert), errors.As(err, &cert), errors.As(err, &hostname):
		return false
	case errors.As(err, &refused):
		return temporaryStatus(refused.Status)
	case errors.As(err, &dns):
		return !dns.IsNotFound
	}
	// Anything else that the transport reports is a connection that broke,
	// under one of many names.
	return true
}

// temporaryStatus reports whether a status may be another one a little later.
func temporaryStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return status >= 520 // those that proxies made up, such as Cloudflare's
}

// explain adds the class and what to do next to an error of the transport.
func explain(err error, host string) error {
	var (
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	if isFinal(err) || errdefs.IsUnavailable(err) {
		return err
	}
	insecure := fmt.Sprintf("list it as an insecure registry (--insecure-registry %s, or insecure-registries in /etc/docker/daemon.json)", host)
	hint := ""
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		hint = "the registry speaks plain http: " + insecure
	case errors.As(err, &unknown):
		hint = fmt.Sprintf("put the certificate of its authority into /etc/docker/certs.d/%s/ca.crt or name it in SSL_CERT_FILE, or %s", host, insecure)
	case errors.As(err, &cert):
		hint = "correct the certificate, or " + insecure
	case errors.As(err, &dns) && dns.IsNotFound:
		hint = "check the spelling of the registry's name, and the DNS of this container"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nothing listens there: check the port, and that the registry has started"
	}
	if hint == "" {
		return &unavailable{err}
	}
	return &unavailable{fmt.Errorf("%w; %s", err, hint)}
}

// unavailable is of that class, and does not say so: what the transport reports does.
type unavailable struct{ error }

func (e *unavailable) Unwrap() []error { return []error{e.error, errdefs.ErrUnavailable} }

// refusalHint says what may help who was refused with cred.
func (c *Client) refusalHint(domain string, cred Credential) string {
	login := `run "den login` + loginName(domain) + `"`
	switch {
	case c.loggingIn:
		return "check the user name and the password; with two-factor authentication, a token takes the password's place"
	case cred == (Credential{}):
		return "if the repository is private, " + login
	case cred.Username != "" && cred.IdentityToken == "":
		return fmt.Sprintf("the credential stored for %s (user %s) was used: %s to replace it", domain, printable(cred.Username), login)
	}
	return fmt.Sprintf("the token stored for %s was used: %s to replace it", domain, login)
}
