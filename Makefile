# ws-sidecar: the commands of everyday work. `make` alone lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.9

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PIP_INSTALL := $(PIP) install --quiet --require-hashes
# The checkout itself: its build backend is locked, so nothing is fetched for it.
# With the client, which the demo agent of development mode is built on.
INSTALL_PROJECT := $(PIP) install --quiet --no-deps --no-build-isolation --no-index -e packages/api -e clients/python -e .

# A worker a core. Stealing keeps a file's tests, and so its fixtures, on one worker until the other has nothing left.
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

# How long a soak lasts.
MINUTES ?= 2

UV := .venv-lock/bin/uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-emit-package ws-sidecar-api --no-emit-package ws-sidecar-client \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.PHONY: help install run test check conformance docs proto proto-check bench soak clean lock

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | while IFS=@ read -r name text; do \
		printf '%-20s %s\n' "$$name" "$$text"; done

install: $(VENV)/.runtime ## build .venv from the lock file, with the project in it

run: install ## install, then serve in development mode (ARGS=--no-agent: the page, for an agent of your own)
	$(BIN)/sidecar serve --dev $(ARGS)

test: $(VENV)/.dev ## install, then run the whole suite and ask for its coverage (ARGS="...": that part of it alone)
ifeq ($(strip $(ARGS)),)
	$(BIN)/coverage erase
	$(BIN)/python -W error -m coverage run -m pytest -W error $(IN_PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='sidecar/core/*,sidecar/security/*' --fail-under=100
	$(BIN)/coverage report
else
	$(BIN)/python -W error -m pytest -W error $(ARGS)
endif

conformance: $(VENV)/.dev ## play the conformance list with every client, and write the table of docs/clients.md
	GRPC_VERBOSITY=NONE $(BIN)/python -W error -m tests.clients.conformance

check: $(VENV)/.dev ## lint, format, types, layers, the contract, the generated pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/python scripts/generate_proto.py --lint
	$(MAKE) --no-print-directory proto-check
	$(BIN)/python scripts/generate_configuration_doc.py --check
	$(BIN)/python scripts/generate_api_doc.py --check
	$(BIN)/python -m tests.clients.conformance --check
	$(BIN)/python scripts/clients.py check

docs: $(VENV)/.dev ## generate docs/configuration.md and docs/api.md
	$(BIN)/python scripts/generate_configuration_doc.py
	$(BIN)/python scripts/generate_api_doc.py

proto: $(VENV)/.dev ## generate sidecar/api and the clients' stubs from proto/, and the demo page's client
	$(BIN)/python scripts/generate_proto.py
	$(BIN)/python scripts/clients.py generate

proto-check: $(VENV)/.dev ## fail if sidecar/api is not what proto/ generates
	$(BIN)/python scripts/generate_proto.py --check

bench: $(VENV)/.dev ## measure the sidecar beside the bare libraries (ARGS="--quick", "--only unary", "--help", ...)
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.dev ## put real sidecars through every fault there is (MINUTES=2; ARGS="--seed 1", "--store sqlite", ...)
	GRPC_VERBOSITY=NONE $(BIN)/python -W error -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

lock: $(UV) ## write the lock files from pyproject.toml (UPGRADE=1: newest versions)
	$(COMPILE) pyproject.toml --output-file requirements.lock
	echo 'hatchling>=1.27,<2' | $(COMPILE) --constraints requirements.lock - --output-file requirements-build.lock
	$(COMPILE) pyproject.toml --extra dev --constraints requirements.lock --constraints requirements-build.lock \
		--output-file requirements-dev.lock

clean: ## remove what these commands made
	rm -rf .venv .venv-lock .venv-proto build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: say make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: requirements.lock requirements-build.lock pyproject.toml packages/api/pyproject.toml \
		clients/python/pyproject.toml | $(VENV)/.created
	$(PIP_INSTALL) -r requirements.lock -r requirements-build.lock
	$(INSTALL_PROJECT)
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(PIP_INSTALL) -r requirements-dev.lock
	@touch $@

$(UV):
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
