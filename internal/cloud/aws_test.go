package cloud

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// The signatures are those that AWS publishes for these requests.
func TestSignaturesAreThoseOfTheDocumentation(t *testing.T) {
	s3 := awsKeys{id: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
	suite := awsKeys{id: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	for _, test := range []struct {
		url, service, want string
		keys               awsKeys
		at                 time.Time
	}{
		{"https://examplebucket.s3.amazonaws.com/?lifecycle", "s3", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", s3, time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)},
		{"https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", "s3", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7", s3, time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)},
		{"https://example.amazonaws.com/", "service", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31", suite, time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)},
	} {
		req, err := request(t.Context(), http.MethodGet, test.url, "", "")
		if err != nil {
			t.Fatal(err)
		}
		sign(req, test.keys, "us-east-1", test.service, emptyPayload, test.at)
		if got := req.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature="+test.want) {
			t.Errorf("%s: %s", test.url, got)
		}
	}
}

func signedBy(id string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+id+"/")
	}
}

func TestAWSKeysAreFoundWhereItsLibrariesFindThem(t *testing.T) {
	const session = `{"AccessKeyId":"ID","SecretAccessKey":"S","Token":"T"}`
	for name, set := range map[string]func(*clouds){
		"variables": func(f *clouds) {
			f.env["AWS_ACCESS_KEY_ID"], f.env["AWS_SECRET_ACCESS_KEY"], f.env["AWS_SESSION_TOKEN"] = "ID", "S", "T"
		},
		"web identity": func(f *clouds) {
			f.env["AWS_ROLE_ARN"], f.env["AWS_REGION"] = "arn:aws:iam::1:role/r", "eu-west-1"
			f.env["AWS_WEB_IDENTITY_TOKEN_FILE"] = put(t, t.TempDir(), "token", "jwt\n")
			f.hosts["sts.eu-west-1.amazonaws.com"] = only(`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
				<AccessKeyId>ID</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken>
				</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, func(r *http.Request) bool {
				return r.FormValue("WebIdentityToken") == "jwt" && r.FormValue("RoleArn") == "arn:aws:iam::1:role/r"
			})
		},
		"file": func(f *clouds) {
			f.env["AWS_PROFILE"] = "ci"
			put(t, f.env["HOME"], ".aws/credentials", "[default]\naws_access_key_id=no\naws_secret_access_key=no\n"+
				"# a comment\n[ci]\naws_access_key_id = ID\naws_secret_access_key = S\naws_session_token = T\n")
		},
		"pod identity": func(f *clouds) {
			f.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://169.254.170.23/v1/credentials"
			f.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = put(t, t.TempDir(), "token", "pod\n")
			f.hosts["169.254.170.23"] = only(session, func(r *http.Request) bool { return r.Header.Get("Authorization") == "pod" })
		},
		"task": func(f *clouds) {
			f.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/x"
			f.hosts["169.254.170.2/v2/x"] = says(session)
		},
		"instance": func(f *clouds) {
			f.hosts["169.254.169.254/latest/api/token"] = says("imds")
			f.hosts["169.254.169.254/latest/meta-data/iam/security-credentials/"] = says("role\n")
			f.hosts["169.254.169.254/latest/meta-data/iam/security-credentials/role"] = only(session, func(r *http.Request) bool {
				return r.Header.Get("X-Aws-Ec2-Metadata-Token") == "imds"
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, c := newClouds(t)
			set(f)
			if k, err := c.awsKeys(t.Context()); err != nil || k != (awsKeys{"ID", "S", "T"}) {
				t.Errorf("%+v, %v", k, err)
			}
		})
	}
}

func TestAWSKeysThatCannotBeHadAreAnError(t *testing.T) {
	f, c := newClouds(t)
	if _, err := c.awsKeys(t.Context()); !errors.Is(err, errNobody) {
		t.Error(err)
	}
	f.env["AWS_EC2_METADATA_DISABLED"] = "true"
	f.asked = nil
	if _, err := c.awsKeys(t.Context()); !errors.Is(err, errNobody) {
		t.Error(err)
	}
	f.wantAsked()
	for _, uri := range []string{"http://elsewhere.test/x", "http://169.254.169.254/x", "::"} {
		f.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = uri
		if _, err := c.awsKeys(t.Context()); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", uri, err)
		}
	}
	f.wantAsked()
	f.env["AWS_ROLE_ARN"], f.env["AWS_WEB_IDENTITY_TOKEN_FILE"] = "r", "/nowhere"
	if _, err := c.awsKeys(t.Context()); err == nil || errors.Is(err, errNobody) {
		t.Errorf("a token that cannot be read: %v", err)
	}
}

func TestS3ObjectComesFromItsBucket(t *testing.T) {
	f, c := newClouds(t)
	f.env["AWS_ACCESS_KEY_ID"], f.env["AWS_SECRET_ACCESS_KEY"], f.env["AWS_REGION"] = "ID", "S", "eu-west-1"
	f.hosts["bucket.s3.eu-west-1.amazonaws.com/a/b%20c.tar.gz"] = only("data", func(r *http.Request) bool {
		return signedBy("ID")(r) && r.Header.Get("X-Amz-Content-Sha256") == emptyPayload
	})
	wantText(t, "data")(c.S3(t.Context(), Object{"bucket", "a/b c.tar.gz"}))
	f.hosts["s3.eu-west-1.amazonaws.com/dotted.bucket/x"] = only("dotted", signedBy("ID"))
	wantText(t, "dotted")(c.S3(t.Context(), Object{"dotted.bucket", "x"}))

	// A bucket of another region is asked for there.
	f.hosts["far.s3.eu-west-1.amazonaws.com"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Amz-Bucket-Region", "us-west-2")
		w.WriteHeader(http.StatusBadRequest)
	}
	f.hosts["far.s3.us-west-2.amazonaws.com"] = only("far", func(r *http.Request) bool {
		return strings.Contains(r.Header.Get("Authorization"), "/us-west-2/s3/")
	})
	wantText(t, "far")(c.S3(t.Context(), Object{"far", "x"}))
	// Not where a server makes one up.
	f.hosts["bad.s3.eu-west-1.amazonaws.com"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Amz-Bucket-Region", "evil.test/")
		w.WriteHeader(http.StatusBadRequest)
	}
	if _, err := c.S3(t.Context(), Object{"bad", "x"}); err == nil {
		t.Error("no error")
	}
	f.env["S3_ENDPOINT"] = "http://minio.test:9000"
	f.hosts["bucket.minio.test:9000/x"] = only("virtual", signedBy("ID"))
	wantText(t, "virtual")(c.S3(t.Context(), Object{"bucket", "x"}))
	f.env["S3_FORCE_PATH_STYLE"] = "true"
	f.hosts["minio.test:9000/bucket/x"] = only("path", signedBy("ID"))
	wantText(t, "path")(c.S3(t.Context(), Object{"bucket", "x"}))
}

func TestS3WithoutKeysIsPublicOrSaysSo(t *testing.T) {
	f, c := newClouds(t)
	f.env["AWS_EC2_METADATA_DISABLED"] = "true"
	f.hosts["open.s3.us-east-1.amazonaws.com"] = only("public", func(r *http.Request) bool { return r.Header.Get("Authorization") == "" })
	wantText(t, "public")(c.S3(t.Context(), Object{"open", "x"}))
	f.hosts["shut.s3.us-east-1.amazonaws.com"] = only("", func(*http.Request) bool { return false })
	_, err := c.S3(t.Context(), Object{"shut", "x"})
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%q", err)
	}
}

func TestECRGivesAPasswordForItsHostsOnly(t *testing.T) {
	f, c := newClouds(t)
	f.env["AWS_ACCESS_KEY_ID"], f.env["AWS_SECRET_ACCESS_KEY"] = "ID", "S"
	token := base64.StdEncoding.EncodeToString([]byte("AWS:pass:word"))
	wants := func(target string) func(*http.Request) bool {
		return func(r *http.Request) bool { return signedBy("ID")(r) && r.Header.Get("X-Amz-Target") == target }
	}
	const private = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
	f.hosts["api.ecr.eu-west-1.amazonaws.com"] = only(`{"authorizationData":[{"authorizationToken":"`+token+`"}]}`, wants(private))
	f.hosts["api.ecr.cn-north-1.amazonaws.com.cn"] = only(`{"authorizationData":[{"authorizationToken":"`+token+`"}]}`, wants(private))
	f.hosts["api.ecr-public.us-east-1.amazonaws.com"] = only(`{"authorizationData":{"authorizationToken":"`+token+`"}}`, wants("SpencerFrontendService.GetAuthorizationToken"))
	for host, want := range map[string]Login{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com": {"AWS", "pass:word"}, "public.ecr.aws": {"AWS", "pass:word"},
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn": {"AWS", "pass:word"},
		"docker.io": {}, "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.test": {}, "x.dkr.ecr.eu-west-1.amazonaws.com": {},
	} {
		if got, err := c.ECR(t.Context(), host); err != nil || got != want {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	f.hosts["api.ecr.eu-west-1.amazonaws.com"] = says(`{}`)
	if _, err := c.ECR(t.Context(), "123456789012.dkr.ecr.eu-west-1.amazonaws.com"); err == nil {
		t.Error("no token is no error")
	}
	delete(f.env, "AWS_ACCESS_KEY_ID")
	if got, err := c.ECR(t.Context(), "public.ecr.aws"); err != nil || got != (Login{}) {
		t.Errorf("without keys: %+v, %v", got, err)
	}
}

func FuzzINI(f *testing.F) {
	f.Add([]byte("[a]\nb = c\n[profile d]\n#e=f"), "a")
	f.Fuzz(func(t *testing.T, data []byte, section string) { iniSection(data, section) })
}
