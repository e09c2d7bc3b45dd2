# Everything a developer types. `make` alone explains itself.
#
# The environment is .venv, made from nothing by `make install`, with the versions in constraints.txt. Addresses of
# package indexes are the machine's business (pip's and uv's own settings); none is recorded here.

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPILED := $(VENV)/.compiled

# Arguments for the program behind a target: make demo ARGS="--seconds 60", make test ARGS="-k codec"
ARGS ?=

# Compiled modules are kept whatever the environment says: tests and demo start many processes that import torch, which
# takes three seconds longer from source.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install compile source demo test check bench clean

help:  ## Show this
	@printf 'modelless: say what you need, the system chooses the model, the hardware and the batch.\n\n'
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | \
		while IFS="$$(printf '\t')" read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done
	@printf '\nEach target makes the environment that it needs first (.venv; Python 3.11 or newer).\n'
	@printf 'More arguments go in ARGS:  make demo ARGS="--seconds 60"   make test ARGS="-k codec"\n'

install: $(INSTALLED)  ## Make .venv with everything in it; does nothing when it is up to date

$(INSTALLED): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "modelless needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "could not make $(VENV): is the venv module there (Debian, Ubuntu: apt install python3-venv)?"; exit 1; }
	@echo "installing into $(VENV) (torch is large: a few minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@MODELLESS_COMPILE=0 $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

compile: $(COMPILED)  ## Compile the pure modules of a query's path, where there is a C compiler (a minute)

$(COMPILED): $(INSTALLED) setup.py $(wildcard broker/*.py modelless/*.py simulator/*.py workers/*.py)
	@echo "compiling the pure modules (a minute; MODELLESS_COMPILE=0 leaves them as they are)"
	@find broker modelless simulator workers -name '*.so' -delete; rm -rf build
	@$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/compile.log 2>&1 || { cat $(VENV)/compile.log; exit 1; }
	@grep 'no C compiler' $(VENV)/compile.log || true
	@touch $@

source:  ## Remove what `make compile` made: run from source
	find broker modelless simulator workers -name '*.so' -delete
	rm -f $(COMPILED)

demo: $(COMPILED)  ## Train a family of models and serve real images through real Kafka (a few minutes)
	$(BIN)/modelless demo $(ARGS)

# In two processes (see tests/conftest.py); a debugger wants one: ARGS="-n 0 --pdb"
test: $(COMPILED)  ## Run all tests; ends with what was skipped, and why
	$(BIN)/python -m pytest -n 2 -rsxX --durations=10 $(ARGS)

check: $(INSTALLED)  ## Lint, format check and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(COMPILED)  ## Throughput and latency beside a plain Kafka relay
	$(BIN)/python -m benchmarks.end_to_end $(ARGS)

clean: source  ## Remove the environment, caches and everything that runs left behind (models and the embedded Kafka too)
	rm -rf $(VENV) .modelless demo-results benchmarks/results build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
