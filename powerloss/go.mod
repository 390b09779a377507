module den/powerloss

go 1.26.8

require (
	den v0.0.0
	github.com/containerd/errdefs v1.0.0
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/opencontainers/go-digest v1.0.0
	golang.org/x/sys v0.47.0
)

require (
	github.com/distribution/reference v0.6.0 // indirect
	github.com/docker/go-units v0.5.0 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/moby/docker-image-spec v1.3.1 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	github.com/ulikunitz/xz v0.5.17 // indirect
)

replace den => ../
