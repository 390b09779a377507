package socket

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// The layout of docker:dind's DOCKER_TLS_CERTDIR.
const (
	caDir, serverDir, clientDir = "ca", "server", "client"
	caFile, certFile            = "ca.pem", "cert.pem"
	keyFile, requestFile        = "key.pem", "csr.pem"
)

// certificateDays is how long a certificate is believed: what Apple's clients accept at most.
const certificateDays = 825

// ServerFiles are the files of a server's TLS.
type ServerFiles struct{ CA, Cert, Key string }

// Certificates sees to it that dir has certificates of a server and of clients, as the entry
// point of docker:dind lays them out:
//
//	ca/{cert,key}.pem  server/{ca,cert,key,csr}.pem  client/{ca,cert,key}.pem
//
// Keys that are there are kept, and certificates are made anew, since names and addresses change.
// A user's own authority is kept: server/ without ca/key.pem is used as it is.
// names are "DNS:name" or "IP:address", or bare. The error is of class errdefs.ErrNotFound where a
// user's authority came without anything of a server's.
func Certificates(dir string, names []string) (ServerFiles, error) {
	files := ServerFiles{filepath.Join(dir, serverDir, caFile), filepath.Join(dir, serverDir, certFile), filepath.Join(dir, serverDir, keyFile)}
	authority := filepath.Join(dir, caDir, keyFile)
	if !filled(authority) && (filled(filepath.Join(dir, caDir, certFile)) || filled(files.CA) && filled(files.Cert) && filled(files.Key)) {
		if !filled(files.CA) || !filled(files.Cert) || !filled(files.Key) {
			return files, fmt.Errorf("certificates in %s: there is ca/cert.pem without its key, and no server/{ca,cert,key}.pem; add them, or ca/key.pem: %w", dir, errdefs.ErrNotFound)
		}
		return files, nil
	}
	if err := makeCertificates(dir, names); err != nil {
		return files, fmt.Errorf("certificates in %s: %w; set DOCKER_TLS_CERTDIR to a directory that can be written, or to nothing for plain HTTP", dir, err)
	}
	return files, nil
}

// filled says that a file has something in it.
func filled(file string) bool {
	fi, err := os.Stat(file)
	return err == nil && fi.Size() > 0
}

func makeCertificates(dir string, names []string) error {
	caKey, err := privateKey(filepath.Join(dir, caDir, keyFile), 0o600)
	if err != nil {
		return err
	}
	authority := template("docker:dind CA")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	caPEM, err := sign(authority, authority, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	server := template("docker:dind server")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames, server.IPAddresses = subjects(names)
	client := template("docker:dind client")
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, leaf := range []struct {
		dir     string
		of      *x509.Certificate
		keyMode fs.FileMode
	}{{serverDir, server, 0o600}, {clientDir, client, 0o644}} { // jobs of any user read the client's
		at := filepath.Join(dir, leaf.dir)
		key, err := privateKey(filepath.Join(at, keyFile), leaf.keyMode)
		if err != nil {
			return err
		}
		certificate, err := sign(leaf.of, authority, key.Public(), caKey)
		if err != nil {
			return err
		}
		request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: leaf.of.Subject, DNSNames: leaf.of.DNSNames, IPAddresses: leaf.of.IPAddresses}, key)
		if err != nil {
			return err
		}
		// The certificate comes last: who finds it finds the rest.
		err = errors.Join(
			replace(filepath.Join(at, requestFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}), 0o644),
			replace(filepath.Join(at, caFile), caPEM, 0o644),
			replace(filepath.Join(at, certFile), certificate, 0o644))
		if err != nil {
			return err
		}
	}
	return replace(filepath.Join(dir, caDir, certFile), caPEM, 0o644)
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, certificateDays), // clocks differ
	}
}

func sign(of, by *x509.Certificate, public crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	of.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, of, by, public, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// subjects sorts names into those of DNS and addresses, each once.
func subjects(names []string) (dns []string, ips []net.IP) {
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		kind, rest, found := strings.Cut(name, ":")
		switch {
		case found && (kind == "DNS" || kind == "IP"):
			name = rest
		case found && net.ParseIP(name) == nil:
			continue // another kind of subject, which openssl knows
		}
		if ip := net.ParseIP(name); ip != nil {
			ips = append(ips, ip)
		} else if name != "" {
			dns = append(dns, name)
		}
	}
	return slices.Compact(dns), ips
}

// maxKeyBytes bounds a file with keys or certificates.
const maxKeyBytes = 1 << 20

// privateKey reads a key in PEM, or makes one.
func privateKey(file string, mode fs.FileMode) (crypto.Signer, error) {
	if !filled(file) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return key, replace(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), mode)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyBytes))
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if key := parseKey(block.Bytes); key != nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("key %s: not a private key in PEM (PKCS 1, SEC 1 or PKCS 8): %w", file, errdefs.ErrInvalidArgument)
}

func parseKey(der []byte) crypto.Signer {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		signer, _ := key.(crypto.Signer)
		return signer
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	return nil
}

// replace writes a file that is there whole or not at all.
func replace(file string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".den-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// Config is the TLS of a server with these files. verify asks clients for a certificate of the
// authority's.
func (s ServerFiles) Config(verify bool) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		return nil, fmt.Errorf("server certificate %s with key %s: %w", s.Cert, s.Key, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if !verify {
		return c, nil
	}
	text, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("certificate authority %s: no certificate in it: %w", s.CA, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// Names are those that a server's certificate should have: all addresses of this machine, its
// host names, docker, localhost, and extra, separated by commas as in DOCKER_TLS_SAN.
func Names(extra string) []string {
	names := []string{"DNS:docker", "DNS:localhost", "IP:127.0.0.1", "IP:::1"}
	if host, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(host, ".")
		names = append(names, "DNS:"+host, "DNS:"+short)
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				names = append(names, "IP:"+n.IP.String())
			}
		}
	}
	for _, name := range strings.Split(extra, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}
