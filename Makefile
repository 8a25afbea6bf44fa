# The commands worth remembering. `make` lists them.
#
#   PYTHON=python3.12 make setup     with another Python (3.11 or newer)
#   PORT=5001 make ui                on another port
#   JOBS=8 make test                 with more processes

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-all bench ui clean

PYTHON ?= python3
PORT ?= 5000
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin/
INSTALLED := $(VENV)/.installed
# A file's tests stay in one process, with what they share; the long files of the first folders first.
SIDE_BY_SIDE := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# PyTorch's threads sleep while they wait for each other: see src/graft/__init__.py.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 3000

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED)  ## make .venv and install everything into it (again only when pyproject.toml changed)
	@if [ -e .git ] && [ -z "$$CI" ] && command -v git >/dev/null; then \
	    $(BIN)pre-commit install >/dev/null || echo "No commit hook: git refused it. All else is ready."; \
	fi

# An existing .venv is kept, so one with a special PyTorch in it is respected. `--clear` mends a
# half-made one: Debian without python3-venv leaves a folder without pip behind.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    f"Graft needs Python 3.11 or newer; this is {v[0]}.{v[1]}. Try: make setup PYTHON=python3.12")'
	@$(BIN)python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)python -m pip install -e ".[dev,postgres]"
	@# For a test. With its dependencies it would bring Hydra's release candidate.
	$(BIN)python -m pip install --no-deps "hydra-submitit-launcher>=1.2" "submitit>=1.5"
	@touch $@

demo: setup  ## the first sweep: strategy x learning rate on the built-in pictures
	$(BIN)graft -m strategy=head_only,fine_tune optimizer.lr=1e-3,1e-4 sweep.name=demo

check: setup  ## format, lint, types, import arrows
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)mypy src sweeper
	$(BIN)lint-imports

test: setup  ## what a change should pass before it is shown
	$(BIN)pytest $(SIDE_BY_SIDE) -m "not slow and not gpu"

test-all: setup  ## every test
	$(BIN)pytest

bench: setup  ## the tables of docs/performance.md: graft against a plain loop
	$(BIN)python benchmarks/sweep.py demo heads again memory vgg16 stack
	$(BIN)python benchmarks/launcher.py
	$(BIN)python benchmarks/search.py busy pruning rates

ui: setup  ## the MLflow UI of the runs in outputs/, on this machine only
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)mlflow server \
	    --workers 1 --backend-store-uri sqlite:///outputs/mlflow.db --host 127.0.0.1 --port $(PORT)

clean:  ## remove caches and builds; .venv/ and outputs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src sweeper tests -name __pycache__ -type d -prune -exec rm -rf {} +
