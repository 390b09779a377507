# den's targets; `make help` lists them.
SHELL      := /bin/sh
GO         ?= go
export CGO_ENABLED := 0
LDFLAGS    := -s -w
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help build demo test unit e2e check bench stress fuzz deps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/den, one static binary
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/den ./cmd/den

bin/demo-base: $(wildcard demo/base/*.go) demo/go.mod
	@mkdir -p bin
	cd demo && $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o ../bin/demo-base ./base

demo: build bin/demo-base ## build den and do the main job on an embedded example
	@demo/run.sh

deps: ## install what the tests drive (Debian or Ubuntu, as root); elsewhere say what is missing
	@sh scripts/deps.sh

test: deps check ## run every test, installing what it needs
	sh scripts/test.sh

unit: ## the inner loop: tests without root and network
	$(GO) test ./...

check: ## vet, format, static analysis
	@test -z "$$(gofmt -l cmd internal e2e demo *.go 2>/dev/null)" || { gofmt -l cmd internal e2e demo *.go; echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

bench: ## benchmarks beside the code, then the workloads against the physical floor
	$(GO) test -run '^$$' -bench . -benchtime 200ms ./internal/...
	sh scripts/bench.sh

stress: ## the store under many processes and kill -9, ten minutes
	$(GO) test -tags stress -run Stress -timeout 30m ./internal/store/... -stress 10m

fuzz: ## each fuzz target for twenty seconds
	sh scripts/fuzz.sh 20s

clean: ## remove what make built
	chmod -R u+rwX bin 2>/dev/null; rm -rf bin
