package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"den/internal/oci"
)

const (
	maxHelperBytes = 1 << 20
	helperTimeout  = time.Minute
)

// errNoHelper is a helper that is not installed.
var errNoHelper = errors.New("not installed")

// askHelper gets a credential from docker-credential-NAME. A helper that is not
// there and not built in is told once and means no credential: the configuration
// was often written on another machine.
func (c *Client) askHelper(ctx context.Context, name, host, repository string) (Credential, error) {
	server := serverURL(host)
	out, err := runHelper(ctx, name, "get", []byte(server))
	if errors.Is(err, errNoHelper) {
		if own := c.o.Helpers[name]; own != nil {
			return own(ctx, host, repository)
		}
		c.noticeOnce("credential helper docker-credential-%s is not installed, going on without a credential for %s", name, server)
		return Credential{}, nil
	}
	if err != nil {
		// The helpers' protocol has no other mark for it than this text.
		if strings.Contains(err.Error(), "credentials not found in native keychain") ||
			strings.Contains(err.Error(), "no credentials server URL") || strings.Contains(err.Error(), "no credentials username") {
			return Credential{}, nil
		}
		return Credential{}, err
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil {
		return Credential{}, fmt.Errorf("credential helper docker-credential-%s: its answer is not JSON", name)
	}
	if answer.Username == "<token>" {
		return Credential{IdentityToken: answer.Secret}, nil
	}
	return Credential{Username: answer.Username, Password: answer.Secret}, nil
}

// storeInHelper hands a credential to a helper.
func storeInHelper(ctx context.Context, name, server string, cred Credential) error {
	entry := struct{ ServerURL, Username, Secret string }{server, cred.Username, cred.Password}
	if cred.IdentityToken != "" {
		entry.Username, entry.Secret = "<token>", cred.IdentityToken
	}
	in, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	_, err = runHelper(ctx, name, "store", in)
	return err
}

// runHelper runs one verb of the credential helpers' protocol. The secret
// travels over standard input and output only.
func runHelper(ctx context.Context, name, verb string, in []byte) ([]byte, error) {
	if name == "" || strings.ContainsAny(name, `/\`) {
		return nil, fmt.Errorf("credential helper %q: not the name of one", name)
	}
	program := "docker-credential-" + name
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("credential helper %s: %w", program, errNoHelper)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, verb)
	cmd.Stdin = bytes.NewReader(in)
	cmd.WaitDelay = time.Second // a grandchild may keep the pipe open
	var out limitedBuffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// Helpers explain themselves on standard output.
		return nil, fmt.Errorf("credential helper %s %s: %w: %s", program, verb, err, printable(string(out.data)))
	}
	return out.data, nil
}

// limitedBuffer refuses more than maxHelperBytes.
type limitedBuffer struct{ data []byte }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if len(b.data)+len(p) > maxHelperBytes {
		return 0, oci.ErrTooLarge
	}
	b.data = append(b.data, p...)
	return len(p), nil
}
