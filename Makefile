# The checks of this repository; CI runs lint and test. `make help` lists them.

BENCH ?= .
BENCHTIME ?= 200ms
COUNT ?= 1
FUZZTIME ?= 10s
PKG ?= ./...

# A workspace around the checkout is not ours.
export GOWORK := off

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: check
check: lint test ## what CI runs

.PHONY: test
test: ## every test of every module, under the race detector; installs what tests need when root
	@scripts/test

.PHONY: lint
lint: ## gofmt, go mod tidy, go vet, staticcheck, builds for other systems
	@scripts/lint

.PHONY: fmt
fmt: ## format all Go files
	gofmt -s -w .

.PHONY: bench
bench: ## benchmarks of the root module; BENCH=regexp PKG=./limiter BENCHTIME=1s COUNT=6
	go test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -count $(COUNT) $(PKG)

.PHONY: compare
compare: ## the same work through other libraries; BENCH=regexp BENCHTIME=1s COUNT=6
	cd ./examples/compare && go test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -count $(COUNT) ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=10s; PKG=./cache
	@scripts/fuzz $(FUZZTIME) $(PKG)
