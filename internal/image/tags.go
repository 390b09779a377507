package image

import "context"

// Tags lists the tags that a repository has in its registry.
func (m *Images) Tags(ctx context.Context, repo string) ([]string, error) {
	if err := m.online(); err != nil {
		return nil, err
	}
	return m.reg.Tags(ctx, repo)
}
