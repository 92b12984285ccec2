# `make figures` and `make test` need only Python >= 3.11, make and this checkout: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Options of `make figures` and `make bench`: make figures ARGS="modes --preset paper", make bench ARGS="--only vit"
ARGS ?=
# One BLAS thread per test process: the suite runs one process per core.
TEST_ENV := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
JOBS ?= auto

.PHONY: figures gallery test test-slow test-oracle docs derivations lint format types bench bench-peers clean

figures: $(VENV)/.installed-core
	$(BIN)/python -m figures $(ARGS)

# The pictures of the docs, from the numbers in figures/results; `make figures ARGS="NAME --record"` writes those.
gallery: $(VENV)/.installed-core
	$(BIN)/python -m figures --redraw --gallery docs/_static/gallery

test: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu"

test-slow: $(VENV)/.installed-test $(VENV)/.installed-dask
	$(BIN)/python -m pytest -m slow

test-oracle: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pytest -m oracle

derivations: docs/derivations/index.rst

# Verifying and writing the pages is one run; it happens again when a derivation has changed.
docs/derivations/index.rst: $(wildcard derivations/*.py) | $(VENV)/.installed-core
	$(BIN)/python -m derivations --docs docs/derivations

docs: $(VENV)/.installed-docs docs/derivations/index.rst
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks $(ARGS)

# What the benchmarks compare with, where it is installed; `make bench` installs none of it.
bench-peers: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q torch==2.13.0 jax

clean:
	rm -rf $(VENV) docs/_build docs/derivations figures/output .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit('linfb needs Python >= 3.11, found ' + sys.version) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-core: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[$*]"
	touch $@
