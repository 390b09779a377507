package daemon

import (
	"context"

	"den/internal/cloud"
	"den/internal/registry"
)

// helpers are the credential helpers of the clouds, which are built in: no program
// has to be there where a configuration names one.
func helpers() map[string]registry.CredentialFunc {
	c := cloud.New(cloud.Options{})
	out := map[string]registry.CredentialFunc{}
	for name, ask := range map[string]func(context.Context, string) (cloud.Login, error){
		"ecr-login": c.ECR, "gcr": c.GCR, "gcloud": c.GCR, "acr-env": c.ACR,
	} {
		out[name] = func(ctx context.Context, host, _ string) (registry.Credential, error) {
			login, err := ask(ctx, host)
			return registry.Credential{Username: login.Username, Password: login.Password}, err
		}
	}
	return out
}
