# Two commands do everything on a fresh clone: `make demo` and `make test`. They need python3 (3.11+), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# .ci/run has its own: it runs a failed test once more.
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test check test-slow test-vm format docs bench deb release lock clean
help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# An editable install by path, not by import hook: the hook would load at every start of Python.
# `--without-pip` and `pip --python` work where Debian's python3-venv is not installed.
$(STAMP): pyproject.toml
	@echo "== setting up $(VENV)"
	@$(PYTHON) -m venv --without-pip --clear $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## run a real job on this checkout through an embedded control plane and agent
	@$(BIN)/agentina demo

check: $(STAMP)  ## lint, format check, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: $(STAMP)  ## everything but the slow suites
	$(PYTEST) -m 'not slow and not vm'

test-slow: $(STAMP)  ## the long fault-injection runs
	$(PYTEST) -m 'slow and not vm'

test-vm: $(STAMP)  ## install the packages on real hosts (as root; virtual machines and containers) and be hard on them
	$(PYTEST) -m vm tests/vm

format: $(STAMP)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(STAMP)  ## regenerate the reference pages
	$(BIN)/python -m agentina.cli.reference docs

bench: $(STAMP)  ## measure speed and size, print ratios
	$(BIN)/python -m benchmarks.run

deb:  ## build the Debian packages into dist/ (VERSION=1.2.3 calls the release that, ARCHITECTURE=arm64 crosses)
	@PYTHONPATH=packaging $(PYTHON) -B -m releasing deb $(if $(VERSION),--version $(VERSION)) $(if $(ARCHITECTURE),--architecture $(ARCHITECTURE))

release:  ## build release archives into dist/VERSION (VERSION=1.2.3 calls it that, ARCHITECTURE=arm64 builds only that)
	@PYTHONPATH=packaging $(PYTHON) -B -m releasing release $(if $(VERSION),--version $(VERSION)) $(if $(ARCHITECTURE),--architecture $(ARCHITECTURE))

lock:  ## take the newest libraries into releases
	@PYTHONPATH=packaging $(PYTHON) -B -m releasing lock

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
