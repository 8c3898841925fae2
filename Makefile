# Everything from a bare checkout: Python 3.11+ and make, nothing else. `make` alone lists the targets.

PYTHON ?= python3
JOBS   ?= 2
N      ?= 1
ARGS   ?=

VENV := .venv
RUN  := $(VENV)/bin/python
PIP  := PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip --quiet --no-input
UV_VERSION := 0.13.9
LOCK := pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.DEFAULT_GOAL := help
.PHONY: help demo test check format prove bench lock clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## simulated providers, the gateway on 127.0.0.1:8080, traffic, a report (ARGS=--once to end after it)
	@$(RUN) -m gateway demo $(ARGS)

test: $(VENV)/.dev ## the whole suite against a real PostgreSQL and a real Valkey that it brings (ARGS="-k name")
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import direction, house rules
	@$(RUN) -m ruff format --check --output-format concise . || { echo "Run: make format"; exit 1; }
	@$(RUN) -m ruff check --output-format concise .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -q -p no:xdist tests/architecture

format: $(VENV)/.dev ## write files the way check wants them
	@$(RUN) -m ruff format --quiet .
	@$(RUN) -m ruff check --quiet --fix .

prove: $(VENV)/.dev ## the long proofs, a line and a figure each (N=3 thrice as much, N=full for the night, ARGS=storm)
	@$(RUN) -m tests.prove --size $(N) $(ARGS)

bench: $(VENV)/.dev ## CPU per request and per chunk and added latency, each beside its limit
	@$(RUN) -m bench $(ARGS)

lock: $(VENV)/.runtime ## resolve pyproject.toml into the two locks again (ARGS=--upgrade to move to newer versions)
	@$(PIP) install uv==$(UV_VERSION)
	@$(RUN) -m uv pip compile $(LOCK) --group build $(ARGS) -o requirements.lock
	@$(RUN) -m uv pip compile $(LOCK) --group build --group dev -c requirements.lock $(ARGS) -o requirements-dev.lock

clean: ## remove the virtual environment and caches; data in ./var stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) from requirements.lock, once…"
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "Adding what tests and checks need, once…"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
