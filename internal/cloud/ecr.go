package cloud

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// A Login is a user's name and password for a registry.
type Login struct{ Username, Password string }

// ecrHost is a private registry: account, region, partition
// (docs.aws.amazon.com/AmazonECR/latest/userguide/registries.html).
var ecrHost = regexp.MustCompile(`^([0-9]{12})\.dkr[.-]ecr(-fips)?\.([a-z0-9-]+)\.(amazonaws\.com|amazonaws\.com\.cn|on\.aws|on\.amazonwebservices\.com\.cn)$`)

const ecrPublic = "public.ecr.aws"

// ECR asks AWS for the password of one of its registries. Another host, or no AWS
// credentials, is the zero Login.
func (c *Client) ECR(ctx context.Context, host string) (Login, error) {
	m := ecrHost.FindStringSubmatch(host)
	if m == nil && host != ecrPublic {
		return Login{}, nil
	}
	keys, err := c.awsKeys(ctx)
	if errors.Is(err, errNobody) {
		return Login{}, nil
	}
	if err != nil {
		return Login{}, fmt.Errorf("password for %s: %w", host, err)
	}
	service, region, target := "ecr-public", "us-east-1", "SpencerFrontendService.GetAuthorizationToken"
	to := "https://api.ecr-public." + awsDomain(region) + "/"
	if m != nil {
		service, region, target = "ecr", m[3], "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
		to = "https://api.ecr." + awsDomain(region) + "/"
		if m[2] != "" {
			to = "https://ecr-fips." + awsDomain(region) + "/"
		}
	}
	login, err := c.ecrToken(ctx, to, service, region, target, keys)
	if err != nil {
		return Login{}, fmt.Errorf("password for %s: %w", host, err)
	}
	return login, nil
}

func (c *Client) ecrToken(ctx context.Context, to, service, region, target string, keys awsKeys) (Login, error) {
	const ask = "{}"
	req, err := request(ctx, http.MethodPost, to, "application/x-amz-json-1.1", ask)
	if err != nil {
		return Login{}, err
	}
	req.Header.Set("X-Amz-Target", target)
	sign(req, keys, region, service, sha256Hex(ask), c.o.Now())
	type data struct {
		Token string `json:"authorizationToken"`
	}
	var token string
	if service == "ecr" {
		var out struct {
			Data []data `json:"authorizationData"`
		}
		if err := c.answer(req, &out); err != nil {
			return Login{}, err
		}
		if len(out.Data) > 0 {
			token = out.Data[0].Token
		}
	} else {
		var out struct {
			Data data `json:"authorizationData"`
		}
		if err := c.answer(req, &out); err != nil {
			return Login{}, err
		}
		token = out.Data.Token
	}
	raw, err := base64.StdEncoding.DecodeString(token)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		return Login{}, fmt.Errorf("%s does not answer with a token", req.URL.Host)
	}
	return Login{user, password}, nil
}
