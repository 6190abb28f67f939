# `make test` and `make demo` need Python 3.10+ and nothing else: they install what they use into $(VENV), once.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# What is installed: extras of pyproject.toml, and a torch of one's own; EXTRAS=test TORCH=torch==2.13.0
EXTRAS ?= dev
TORCH ?=

override VENV := $(patsubst %/,%,$(VENV))
BIN := $(VENV)/bin
# A copy of the pyproject.toml that was installed: written last, so that half an installation has none.
STAMP := $(VENV)/installed-pyproject.toml
# Stands beside an environment that is being made; whoever finds it starts again from nothing.
UNFINISHED := $(VENV).unfinished

# Run this checkout's source, also from an environment that was installed for another checkout.
export PYTHONPATH := $(CURDIR)
# Small tensors: torch's threads cost more than they bring, so one for each worker.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test coverage sweep load fuzz mutate bench package lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)  ## fuse a model and show what became of it; DEMO_ARGS="--model fastvit_ma36"
	$(BIN)/repcompile demo $(DEMO_ARGS)

test: $(STAMP)  ## the tests; TEST_ARGS="-k border tests/test_affine.py"
	$(PYTEST) $(TEST_ARGS)

coverage: $(STAMP)  ## the tests; fails unless they take 95 % of repcompile's branches
	$(PYTEST) --cov $(TEST_ARGS)

sweep: $(STAMP)  ## every published network (an hour)
	$(PYTEST) -m sweep $(TEST_ARGS)

load: $(STAMP)  ## models of 100,000 nodes and of a gigabyte (ten minutes, 8 GB)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m load $(TEST_ARGS)

fuzz: $(STAMP)  ## random programs (an hour); FUZZ_ARGS="--programs 1000 --seed 7"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.report $(FUZZ_ARGS)

mutate: $(STAMP)  ## change one thing at a time, and see whether a test notices (hours); MUTATE_ARGS="plan --ends 37"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[mutation]"
	$(BIN)/python -m tests.mutation.run $(MUTATE_ARGS)

bench: $(STAMP)  ## the speed of the compiler, and of what it makes; BENCH_ARGS
	$(BIN)/python tests/bench.py $(BENCH_ARGS)

package: $(STAMP)  ## wheel and sdist, in dist/
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist .

lint: $(STAMP)  ## style, format, import layers, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## mend what can be mended
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean:  ## remove what tools leave behind; the environment stays
	rm -rf build dist .benchmarks .coverage htmlcov .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find repcompile fastvit_zoo tests -name __pycache__ -prune -exec rm -rf {} +

ifneq ($(shell test -x $(BIN)/python && cmp -s pyproject.toml $(STAMP) && echo current),current)
.PHONY: $(STAMP)
endif
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed: make PYTHON=...")'
	@echo "Installing repcompile and what its development needs into $(VENV): some GB, some minutes, only this once."
	@rm -f $@
	@mkdir -p $(dir $(VENV))
	@test -e $(VENV) || touch $(UNFINISHED)
	@test ! -e $(UNFINISHED) || $(PYTHON) -m venv --clear $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@cp pyproject.toml $@.part
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]" $(TORCH)
	@rm -f $(UNFINISHED)
	@mv $@.part $@
