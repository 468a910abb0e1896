# Two commands matter: `make demo` and `make test`. Both work on a fresh Debian or Ubuntu machine
# with Rust and nothing else, as root or with sudo.

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help setup build test torture lint demo bench

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: ## Install what building and testing need; quiet when nothing is to do
	@scripts/setup

build: ## The binary, optimised: target/release/opsd
	@scripts/setup --demo
	$(CARGO) build --release

test: setup ## Every test, against real servers
	$(CARGO) test --no-fail-fast

torture: setup ## Every integration test with more rounds and longer faults: an hour, not minutes
	OPSD_TORTURE=1 $(CARGO) test --no-fail-fast --test it

lint: ## Formatting, lints and documentation, warnings as errors
	@scripts/setup --demo
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

demo: ## Back up, restore, prove and break something, in half a minute after the build
	@scripts/setup --demo
	$(CARGO) build --release --bin opsd --example demo
	$(CARGO) run --quiet --release --example demo

bench: setup ## opsd beside what people use today, with targets; a quarter of an hour after the build
	@command -v rclone >/dev/null || { echo "make bench needs rclone for the pipe: apt-get install rclone" >&2; exit 1; }
	$(CARGO) bench --bench bench
