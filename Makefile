# Set-up, demo and checks. `make` alone lists the targets.
#
# The first target that needs it makes .venv and installs requirements.lock there; after that, only a
# change of requirements.lock or pyproject.toml installs anything.

VENV := .venv
STAMP := $(VENV)/.installed

# Python 3.11 or newer: each name is run, since a name on the path may be a shim with nothing behind it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	$$each -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$each && break; done)

# Where the build of PyTorch comes from. For a GPU, in a fresh .venv:
# make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH = $(shell grep -o '^torch==[0-9.]*' requirements.lock)

# Errors alone: where pip knows several places, it warns for each package that one of them lacks.
PIP_INSTALL := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
UV := uv==0.13.9
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s  %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv and install what the project needs (a few minutes)

demo: $(STAMP) ## Set up, then run the whole pipeline on generated data (some minutes more)
	$(VENV)/bin/pixrec demo

test: lint ## Set up, then run every check and test; PYTEST_ARGS="-m 'not slow'" leaves out the slow ones
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(STAMP) ## Set up, then check style and types
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m mypy

# $(call make_venv,folder): one that works is left as it is
define make_venv
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	python='$(PYTHON)'; \
	"$$python" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 || { \
		echo "PixRec needs Python 3.11 or newer; '$${python:-python3}' is not. Name one: make setup PYTHON=/path/to/python3.11" >&2; \
		exit 1; }; \
	echo "Making $(1) with $$python"; \
	"$$python" -m venv --clear $(1); }
endef

# PyTorch goes first and alone: only it is looked for in TORCH_INDEX (where that host cannot be reached,
# pip would try it again for each package), whose 2.13.0+cpu wins over the plain 2.13.0 elsewhere, on
# Linux a CUDA build. The lock is whole, so nothing else is resolved; `pip check` says if it is not. The
# project is built with the setuptools of the lock.
$(STAMP): requirements.lock pyproject.toml
	$(call make_venv,$(VENV))
	@echo "[1/4] $(TORCH), about 200 MB, from $(TORCH_INDEX) or pip's own places"
	@$(PIP_INSTALL) --no-deps --retries 1 --timeout 15 $(TORCH_INDEX:%=--extra-index-url %) $(TORCH)
	@echo "[2/4] the $$(grep -c '==' requirements.lock) packages of requirements.lock"
	@$(PIP_INSTALL) --no-deps --requirement requirements.lock
	@echo "[3/4] what a CUDA build of PyTorch needs besides (nothing with a CPU build)"
	@$(PIP_INSTALL) --constraint requirements.lock $(TORCH)
	@echo "[4/4] PixRec itself"
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(VENV)/bin/python -m pip check || { echo "requirements.lock does not fit pyproject.toml: make lock" >&2; exit 1; }
	@touch $@

# Resolved anew for every supported Python and platform. Versions stay as they are where they still fit.
lock: ## Rewrite requirements.lock after a change in pyproject.toml; UPGRADE=1 takes the newest versions
	$(call make_venv,build/lock)
	@build/lock/bin/python -m pip install -qq --disable-pip-version-check $(UV)
	build/lock/bin/uv pip compile --quiet --no-header --universal --python-version 3.11 --extra dev \
		$(if $(UPGRADE),--upgrade) --output-file requirements.lock pyproject.toml
	@{ echo "# Written by \`make lock\`: every version that \`make setup\` installs, for users and developers alike."; \
	echo "# Without hashes: torch has a build for each kind of machine, all under the version that stands here."; \
	cat requirements.lock; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock

clean: ## Remove .venv and whatever the tools left behind; data/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis test-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
