package cloud

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// awsKeys sign requests.
type awsKeys struct{ id, secret, token string }

// awsKeys finds who we are for AWS, in the order of AWS's own libraries
// (docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html).
func (c *Client) awsKeys(ctx context.Context) (awsKeys, error) {
	for _, find := range []func(context.Context) (awsKeys, error){
		c.awsVariables, c.awsWebIdentity, c.awsFile, c.awsContainer, c.awsMachine,
	} {
		k, err := find(ctx)
		if !errors.Is(err, errNobody) {
			return k, err
		}
	}
	return awsKeys{}, fmt.Errorf("AWS: %w", errNobody)
}

func (c *Client) awsVariables(context.Context) (awsKeys, error) {
	k := awsKeys{c.first("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"), c.first("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"), c.o.Env("AWS_SESSION_TOKEN")}
	if k.id == "" || k.secret == "" {
		return k, errNobody
	}
	return k, nil
}

// awsWebIdentity exchanges the token that EKS mounts for a service account.
func (c *Client) awsWebIdentity(ctx context.Context) (awsKeys, error) {
	name, role := c.o.Env("AWS_WEB_IDENTITY_TOKEN_FILE"), c.o.Env("AWS_ROLE_ARN")
	if name == "" || role == "" {
		return awsKeys{}, errNobody
	}
	token, err := file(name)
	if err != nil {
		return awsKeys{}, fmt.Errorf("AWS web identity: %w", err)
	}
	session := c.o.Env("AWS_ROLE_SESSION_NAME")
	if session == "" {
		session = "den"
	}
	to := c.first("AWS_ENDPOINT_URL_STS")
	if to == "" {
		to = "https://sts." + awsDomain(c.awsRegion())
	}
	if err := wantTLS(to); err != nil {
		return awsKeys{}, err
	}
	values := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"},
		"RoleArn": {role}, "RoleSessionName": {session}, "WebIdentityToken": {strings.TrimSpace(string(token))},
	}
	req, err := request(ctx, http.MethodPost, to, formType, values.Encode())
	if err != nil {
		return awsKeys{}, err
	}
	data, err := c.document(req)
	if err != nil {
		return awsKeys{}, fmt.Errorf("AWS web identity for %s: %w", printable(role), err)
	}
	var out struct {
		Credentials struct {
			AccessKeyID     string `xml:"AccessKeyId"`
			SecretAccessKey string
			SessionToken    string
		} `xml:"AssumeRoleWithWebIdentityResult>Credentials"`
	}
	if err := xml.Unmarshal(data, &out); err != nil || out.Credentials.AccessKeyID == "" {
		return awsKeys{}, fmt.Errorf("AWS web identity: %s does not answer with credentials", req.URL.Host)
	}
	return awsKeys{out.Credentials.AccessKeyID, out.Credentials.SecretAccessKey, out.Credentials.SessionToken}, nil
}

// awsFile reads the profile's keys in ~/.aws/credentials.
func (c *Client) awsFile(context.Context) (awsKeys, error) {
	name := c.o.Env("AWS_SHARED_CREDENTIALS_FILE")
	if name == "" {
		name = c.home(".aws", "credentials")
	}
	data, err := file(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return awsKeys{}, errNobody
	}
	if err != nil {
		return awsKeys{}, fmt.Errorf("AWS credentials: %w", err)
	}
	profile := c.first("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
	if profile == "" {
		profile = "default"
	}
	v := iniSection(data, profile)
	k := awsKeys{v["aws_access_key_id"], v["aws_secret_access_key"], v["aws_session_token"]}
	if k.id == "" || k.secret == "" {
		return k, errNobody
	}
	return k, nil
}

// iniSection is one section of AWS's configuration files.
func iniSection(data []byte, section string) map[string]string {
	out := map[string]string{}
	in := false
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "["); ok {
			name = strings.TrimSpace(strings.TrimSuffix(name, "]"))
			in = name == section || name == "profile "+section
			continue
		}
		if k, v, ok := strings.Cut(line, "="); ok && in && !strings.HasPrefix(line, "#") {
			out[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return out
}

// awsSession is what the services inside a container or machine answer with.
type awsSession struct {
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	Token           string
}

func (s awsSession) keys() (awsKeys, error) {
	if s.AccessKeyID == "" || s.SecretAccessKey == "" {
		return awsKeys{}, errors.New("the answer has no keys")
	}
	return awsKeys{s.AccessKeyID, s.SecretAccessKey, s.Token}, nil
}

// awsLocal are the hosts that may be asked for keys by plain http: those of ECS
// and of EKS Pod Identity.
var awsLocal = [...]string{"169.254.170.2", "169.254.170.23", "fd00:ec2::23"}

// awsContainer asks the service that ECS and EKS Pod Identity give a container.
func (c *Client) awsContainer(ctx context.Context) (awsKeys, error) {
	to := c.o.Env("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if rel := c.o.Env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); rel != "" {
		to = "http://169.254.170.2/" + strings.TrimPrefix(rel, "/")
	}
	if to == "" {
		return awsKeys{}, errNobody
	}
	u, err := url.Parse(to)
	if err != nil || !slices.Contains(awsLocal[:], u.Hostname()) {
		if err := wantTLS(to); err != nil {
			return awsKeys{}, fmt.Errorf("AWS container credentials: %w", err)
		}
	}
	req, err := request(ctx, http.MethodGet, to, "", "")
	if err != nil {
		return awsKeys{}, err
	}
	token := c.o.Env("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	if name := c.o.Env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); name != "" {
		data, err := file(name)
		if err != nil {
			return awsKeys{}, fmt.Errorf("AWS container credentials: %w", err)
		}
		token = strings.TrimSpace(string(data))
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	var s awsSession
	if err := c.answer(req, &s); err != nil {
		return awsKeys{}, fmt.Errorf("AWS container credentials: %w", err)
	}
	return s.keys()
}

// awsMachine asks the instance metadata service, version 2. That nobody is there
// is no error.
func (c *Client) awsMachine(ctx context.Context) (awsKeys, error) {
	if strings.EqualFold(c.o.Env("AWS_EC2_METADATA_DISABLED"), "true") {
		return awsKeys{}, errNobody
	}
	base := c.o.Env("AWS_EC2_METADATA_SERVICE_ENDPOINT")
	if base == "" {
		base = "http://169.254.169.254"
	}
	base = strings.TrimSuffix(base, "/") + "/latest/"
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	req, err := request(ctx, http.MethodPut, base+"api/token", "", "")
	if err != nil {
		return awsKeys{}, err
	}
	req.Header.Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
	token, err := c.document(req)
	if err != nil {
		return awsKeys{}, errNobody
	}
	get := func(path string) (*http.Request, error) {
		req, err := request(ctx, http.MethodGet, base+path, "", "")
		if err == nil {
			req.Header.Set("X-Aws-Ec2-Metadata-Token", string(token))
		}
		return req, err
	}
	const roles = "meta-data/iam/security-credentials/"
	if req, err = get(roles); err != nil {
		return awsKeys{}, err
	}
	role, err := c.document(req)
	if err != nil {
		return awsKeys{}, errNobody // the machine has no role
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(role)), "\n")
	if req, err = get(roles + url.PathEscape(name)); err != nil {
		return awsKeys{}, err
	}
	var s awsSession
	if err := c.answer(req, &s); err != nil {
		return awsKeys{}, fmt.Errorf("AWS instance credentials: %w", err)
	}
	return s.keys()
}

// awsRegion is the region that the surroundings name, else AWS's first one.
func (c *Client) awsRegion() string {
	if r := c.first("AWS_REGION", "AWS_DEFAULT_REGION"); r != "" {
		return r
	}
	return "us-east-1"
}

// awsDomain is a region's part of a host name.
func awsDomain(region string) string {
	if strings.HasPrefix(region, "cn-") {
		return region + ".amazonaws.com.cn"
	}
	return region + ".amazonaws.com"
}
