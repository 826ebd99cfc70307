# `make` lists what there is. Everything is built into .venv/ and target/; both can be deleted at any time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PROFILE := ci
CARGO ?= cargo
# pytest-xdist's workers: a server and its clients share the cores, so a few more workers than cores keep them busy.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest

export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PATH := $(abspath $(BIN)):$(PATH)
# The extension is linked against no libpython. Cargo is told here what maturin tells it, so that the crates built for
# the extension, for `cargo test` and for clippy are one build and not three.
PYO3_LIKE_MATURIN = PYO3_BUILD_EXTENSION_MODULE=1 PYO3_PYTHON=$(abspath $(BIN)/python) \
  PYO3_CONFIG_FILE=$(firstword $(wildcard $(CARGO_TARGET_DIR)/maturin/pyo3-config-*.txt)) \
  PYO3_ENVIRONMENT_SIGNATURE=$(shell $(BIN)/python -c 'import sys; print("cpython-%d.%d-64bit" % sys.version_info[:2])')
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name tests -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup serve check test test-rust test-unit test-integration test-alone test-node test-browser conformance chaos bench bench-micro pins picture clean

help: ## List what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMPS)/engine ## Make .venv with the pinned packages and the engine; quick when nothing changed.

serve: setup ## Do all the set-up and serve on ws://127.0.0.1:3002 and http://127.0.0.1:3001 (ARGS=… is passed on).
	@exec $(BIN)/realtime serve $(ARGS)

check: setup ## Formatting, lints, types, layers and the engine's stub.
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .cache/import-linter
	$(BIN)/python -m mypy.stubtest realtime._engine
	$(CARGO) fmt --check
	$(PYO3_LIKE_MATURIN) $(CARGO) clippy --quiet --locked --workspace --all-targets --profile $(PROFILE) -- -D warnings

test: setup ## Everything: the checks, Rust, Python, Autobahn's quick set, Node and the browser.
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory test-rust
	$(MAKE) --no-print-directory test-unit
	$(MAKE) --no-print-directory test-integration
	$(MAKE) --no-print-directory test-alone
	$(MAKE) --no-print-directory bench QUICK=1
	$(MAKE) --no-print-directory conformance
	$(MAKE) --no-print-directory test-node
	$(MAKE) --no-print-directory test-browser
	@echo "make test: everything passed"

test-rust: setup ## Tests of the Rust crates.
	$(PYO3_LIKE_MATURIN) $(CARGO) test --quiet --locked --workspace --profile $(PROFILE)

test-unit: setup ## Tests of the Python modules: no socket, no real time; and the micro-benchmarks, once each, unmeasured.
	$(PYTEST) -q tests/unit
	$(PYTEST) -q --benchmark-disable benches/micro/bench_frames.py

test-integration: setup $(STAMPS)/load $(STAMPS)/node ## Tests over real sockets, each with one shard, with two and over socketify.
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m 'not alone' tests/integration

test-alone: setup $(STAMPS)/load ## The integration tests that count every delivery under load, one at a time.
	$(PYTEST) -q -m alone tests/integration

test-node: setup $(STAMPS)/node ## The protocol with Node's ws client.
	cd tests/node && node --test --test-reporter=spec protocol.test.mjs

test-browser: setup $(STAMPS)/browser ## Headless Chromium on the playground page and the README's board.
	cd tests/browser && node --test --test-reporter=spec playground.test.mjs board.test.mjs

conformance: setup $(STAMPS)/autobahn ## Autobahn's quick set against /echo of examples/echo.py (CASES=all for every case).
	$(BIN)/python tests/conformance/run.py --cases $(or $(CASES),quick)

chaos: setup ## 64 connections of one user and 3,000 of one address do their worst for a minute (ARGS="--each --seconds 10", --list).
	$(BIN)/python -m tests.chaos $(ARGS)

bench: setup ## This server beside its rivals, half an hour (QUICK=1: a short round beside Bun; FULL=1: W4b too).
	$(BIN)/python -m benches.run $(if $(QUICK),--quick --load-profile $(PROFILE),--engine-profile dist) $(if $(FULL),--full) $(ARGS)

bench-micro: setup ## What a message costs Python in this process: frames and fan-out beside the websockets library (ARGS=-k plain).
	$(PYTEST) -q benches/micro/bench_frames.py --benchmark-timer=time.thread_time --benchmark-warmup=on --benchmark-sort=name \
	  --benchmark-columns=median,iqr,rounds $(ARGS)

picture: setup $(STAMPS)/browser ## Take docs/images/playground.png again.
	node tests/browser/picture.mjs docs/images/playground.png

pins: ## Resolve the pinned requirements again.
	$(PYTHON) requirements/pin.py

clean: ## Delete what was built.
	rm -rf $(VENV) target .cache python/realtime/_engine*.so tests/node/node_modules tests/browser/node_modules

# ---- what the targets above stand on; each stamp is newer than everything it was made from ----

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python $(PYTHON) is %d.%d, 3.11 or newer is needed; run make PYTHON=python3.x" % sys.version_info[:2])'
	@command -v $(CARGO) >/dev/null || { echo "cargo was not found; install Rust 1.89 or newer (https://rustup.rs)" >&2; exit 1; }
	@echo "setup 1/3: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/requirements: requirements/dev.txt | $(STAMPS)/python
	@echo "setup 2/3: installing the pinned packages (about half a minute)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

$(STAMPS)/engine: $(STAMPS)/requirements pyproject.toml $(RUST_SOURCES)
	@echo "setup 3/3: building the engine (two to three minutes the first time, seconds later)"
	@mkdir -p .cache && $(BIN)/maturin develop --locked --profile $(PROFILE) >.cache/engine.log 2>&1 || { cat .cache/engine.log >&2; exit 1; }
	@touch $@

$(STAMPS)/load: $(RUST_SOURCES) | $(STAMPS)/python
	@echo "building the load generator"
	@$(CARGO) build --quiet --locked --profile $(PROFILE) -p realtime-load
	@touch $@

$(STAMPS)/node: tests/node/package-lock.json | $(STAMPS)/python
	@echo "installing Node's ws client"
	@cd tests/node && npm ci --silent --no-audit --no-fund
	@touch $@

$(STAMPS)/browser: tests/browser/package-lock.json | $(STAMPS)/python
	@echo "installing the browser's driver"
	@cd tests/browser && npm ci --silent --no-audit --no-fund
	@touch $@

$(STAMPS)/autobahn: tests/conformance/requirements.txt tests/conformance/port_cases.py | $(STAMPS)/python
	@echo "installing Autobahn's suite into an environment of its own"
	@$(BIN)/python tests/conformance/run.py --install-only
	@touch $@
