package registry

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// certDirs are the directories whose files concern host, least specific
// first: docker's and containers' places, then the options'.
func (s *shared) certDirs(host string) (dirs, files []string) {
	roots := []string{"/etc/containers/certs.d", "/etc/docker/certs.d"}
	if home := s.o.Env("HOME"); home != "" {
		roots = append(roots, filepath.Join(home, ".config/containers/certs.d"), filepath.Join(home, ".config/docker/certs.d"))
	}
	names := []string{host}
	if name := canonicalHost(host); name != host {
		names = append(names, name)
	}
	for _, r := range roots {
		for _, n := range names {
			dirs = append(dirs, filepath.Join(r, n))
		}
	}
	for _, d := range s.o.CACertDirs {
		if h, file, ok := strings.Cut(d, "="); ok {
			if canonicalHost(h) == canonicalHost(host) {
				files = append(files, file)
			}
			continue
		}
		dirs = append(dirs, d, filepath.Join(d, host))
	}
	return dirs, files
}

// tlsConfig is the configuration for host: the system's authorities (which
// crypto/x509 takes from SSL_CERT_FILE and SSL_CERT_DIR) with those from
// certDirs, and the client certificates found beside them.
func (s *shared) tlsConfig(host string, insecure bool) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure} //nolint:gosec // on the user's list
	dirs, files := s.certDirs(host)
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("registry certificates: %w", err)
		}
		for _, e := range entries {
			name := filepath.Join(d, e.Name())
			switch filepath.Ext(name) {
			case ".crt":
				files = append(files, name)
			case ".pem": // also keys are called that
				if pem, err := readFile(name); err == nil && bytes.Contains(pem, []byte("BEGIN CERTIFICATE")) {
					files = append(files, name)
				}
			case ".cert":
				key := strings.TrimSuffix(name, ".cert") + ".key"
				if err := addClientCert(c, name, key); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, item := range s.o.ClientCerts {
		h, cert, key, err := parseClientCert(item)
		if err == nil && canonicalHost(h) == canonicalHost(host) {
			err = addClientCert(c, cert, key)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, name := range files {
		if err := addAuthority(c, name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// parseClientCert reads "HOST=CERT,KEY".
func parseClientCert(s string) (host, cert, key string, err error) {
	host, files, ok := strings.Cut(s, "=")
	cert, key, two := strings.Cut(files, ",")
	if !ok || !two || !validHost(host) || cert == "" || key == "" {
		return "", "", "", fmt.Errorf("registry client certificate %q: want HOST=CERT,KEY: %w", s, errdefs.ErrInvalidArgument)
	}
	return host, cert, key, nil
}

func addAuthority(c *tls.Config, name string) error {
	pem, err := readFile(name)
	if err != nil {
		return fmt.Errorf("registry certificate: %w", err)
	}
	if c.RootCAs == nil {
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			c.RootCAs = x509.NewCertPool()
		}
	}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("registry certificate %s: no certificate in PEM form in it", name)
	}
	return nil
}

func addClientCert(c *tls.Config, cert, key string) error {
	certPEM, err := readFile(cert)
	if err != nil {
		return fmt.Errorf("registry client certificate: %w", err)
	}
	keyPEM, err := readFile(key)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("registry client certificate %s: its key %s is missing", cert, filepath.Base(key))
	}
	if err != nil {
		return fmt.Errorf("registry client certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("registry client certificate %s: %w", cert, err)
	}
	c.Certificates = append(c.Certificates, pair)
	return nil
}
