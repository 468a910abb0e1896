# Two commands matter: `make demo` and `make test`. Both work on a fresh Debian or Ubuntu machine
# with Rust and nothing else, as root or with sudo.

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help setup build test torture corpus engine fuzz fuzz-tools lint demo bench

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: ## Install what building and testing need; quiet when nothing is to do
	@scripts/setup

build: ## The binary, optimised: target/release/opsd
	@scripts/setup --demo
	$(CARGO) build --release

# Tests wait for servers more than they compute: three at a time a core.
test: setup ## Every test, against real servers
	TMPDIR=$$(scripts/tmpdir) RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(($$(nproc) * 3))} \
		$(CARGO) test --no-fail-fast

# OPSD_TEST_PG and OPSD_TEST_INPUT choose one major and one file.
corpus: ## Databases of tests/fixtures/corpus on every major, beside plain pg_dump and pg_restore
	@scripts/setup --corpus
	OPSD_TORTURE=1 $(CARGO) test --test it -- corpus:: --nocapture --test-threads=1

# As root, who alone starts a Docker Engine: one of the tests' own, apart from the machine's.
engine: ## What is said of Docker, against a real Engine
	@scripts/setup --engine
	$(CARGO) test --features engine --test it -- engine::

torture: fuzz-tools ## Every integration test with more rounds and longer faults, then the fuzz targets
	@scripts/setup --corpus
	$(CARGO) build --example demo
	OPSD_TORTURE=1 $(CARGO) test --no-fail-fast --test it
	OPSD_TORTURE=1 OPSD_TEST_LANGUAGE=de $(CARGO) test --no-fail-fast --test it -- \
		postgres_faults complaints traps locks
	$(MAKE) fuzz

lint: ## Formatting, lints and documentation, warnings as errors
	@scripts/setup --demo
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

demo: ## Back up, restore, prove and break something, in half a minute after the build
	@scripts/setup --demo
	$(CARGO) build --release --bin opsd --example demo
	$(CARGO) run --quiet --release --example demo

# Each target for FUZZ_SECONDS. Stable Rust builds it: libFuzzer needs no more than -Z flags here.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := archive rows manifest globals quoting config keys header mqtt exporter
FUZZ := RUSTC_BOOTSTRAP=1 $(CARGO) fuzz

# Asked for before anything that takes long.
fuzz-tools:
	@command -v c++ >/dev/null || { echo "make fuzz needs a C++ compiler: apt-get install g++" >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked

fuzz: fuzz-tools ## Fuzz what reads foreign bytes, each target for a minute
	python3 fuzz/seeds.py fuzz/corpus
	cd fuzz && $(FUZZ) build --dev --sanitizer none
	@set -e; cd fuzz; for target in $(FUZZ_TARGETS); do \
		echo "fuzz: $$target for $(FUZZ_SECONDS) s"; \
		$(FUZZ) run --dev --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) \
			-timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 -verbosity=0; \
	done

# BENCH=--skip-big leaves out the largest, which needs 36 GiB of disk.
BENCH ?=

bench: setup ## opsd beside what people use today, with targets
	@command -v rclone >/dev/null || { echo "make bench needs rclone for the pipe: apt-get install rclone" >&2; exit 1; }
	$(CARGO) bench --bench bench -- $(BENCH)
