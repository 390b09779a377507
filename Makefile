# den's targets; `make help` lists them.
SHELL      := /bin/sh
GO         ?= go
export CGO_ENABLED := 0
LDFLAGS    := -s -w
IMAGE      ?= den
PLATFORMS  ?= linux/amd64,linux/arm64
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# The tests, the demonstration and the benchmark are modules of their own.
MODULES    := . $(patsubst %/go.mod,%,$(wildcard */go.mod */*/go.mod))

# Where git does not answer (an export, a checkout of another user) nothing can be stamped.
ifneq ($(shell git rev-parse HEAD >/dev/null 2>&1 && echo yes),yes)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

.PHONY: help build image demo test unit e2e check bench stress fuzz deps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/den, one static binary
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/den ./cmd/den

image: build ## build den's own images by den: IMAGE:dind, :kaniko, :kaniko-debug (PLATFORMS, PUSH=1)
	@IMAGE='$(IMAGE)' PLATFORMS='$(PLATFORMS)' PUSH='$(PUSH)' GO='$(GO)' LDFLAGS='$(LDFLAGS)' sh scripts/image.sh

bin/demo-base: $(wildcard demo/base/*.go) demo/go.mod
	@mkdir -p bin
	cd demo && $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o ../bin/demo-base ./base

demo: build bin/demo-base ## build den and do the main job on an embedded example
	@demo/run.sh

deps: ## install what the tests drive (Debian or Ubuntu, as root); elsewhere say what is missing
	@sh scripts/deps.sh

test: deps check ## run every test, installing what it needs
	@sh scripts/test.sh

unit: ## the inner loop: tests without root and network
	$(GO) test ./...

e2e: deps ## the binary against registries and peers
	cd e2e && $(GO) test -timeout 20m ./...

check: ## vet, format, static analysis
	@test -z "$$(gofmt -l *.go cmd internal demo e2e powerloss scripts)" || { gofmt -l *.go cmd internal demo e2e powerloss scripts; echo 'run gofmt -w on these'; exit 1; }
	@status=0; for m in $(MODULES); do echo "vet and staticcheck in $$m"; (cd $$m && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...) || status=1; done; exit $$status

bench: ## benchmarks beside the code, then the workloads against the floor and the peers (root)
	$(GO) test -run '^$$' -bench . -benchtime 200ms ./internal/...
	sh scripts/bench.sh

stress: ## the store under many processes, kill -9 and power cuts, two hours
	$(GO) test -tags stress -count=1 -v -run Stress -timeout 120m ./internal/store -stress 1h
	cd powerloss && $(GO) test -tags stress -count=1 -v -timeout 120m . -work 15s -cuts 400 -between 4 -all
	cd e2e && DEN_STORM=10m $(GO) test -count=1 -v -run 'Storm|JobsOfOneStore' -timeout 40m .

fuzz: ## each fuzz target for twenty seconds
	sh scripts/fuzz.sh 20s

clean: ## remove what make built, also trees of other ids in the demonstration's store
	@if [ -d bin/demo/store ]; then [ -x bin/den ] || $(MAKE) build; DEN_STORE=$(CURDIR)/bin/demo/store bin/den prune --all --force >/dev/null; fi
	rm -rf bin
