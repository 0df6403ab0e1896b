# Everything here needs Python 3.10 or newer, make and git. The first target that you run makes .venv.
#
#   make demo PYTHON=python3.12       another interpreter (only read while .venv is made)
#   make test ARGS="-k schedule -x"   arguments for pytest
#   make test JOBS=8                  processes for pytest
#   make demo PIP_FLAGS="--extra-index-url URL"
#                                     flags for pip, say an index with builds of torch without CUDA

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
OUT ?= outputs
JOBS ?= 2

BIN := .venv/bin
STAMP := .venv/installed

OLDEST := .venv-oldest

.DEFAULT_GOAL := help
.PHONY: help demo test test-whole test-thorough test-oldest zoo bench suites check format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## a photograph through a ViT-B/16, with and without merging
	$(BIN)/tome-fx demo $(ARGS)

test: $(STAMP)  ## all tests with some of their cases, in two processes (about 20 minutes on two cores)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-whole: $(STAMP)  ## the same with all cases (about twice as long)
	$(BIN)/python -m pytest --hypothesis-profile=whole -n $(JOBS) --dist worksteal $(ARGS)

test-thorough: $(STAMP)  ## the same with thousands of drawn models (hours)
	$(BIN)/python -m pytest --hypothesis-profile=thorough $(ARGS)

test-oldest: $(OLDEST)/installed  ## all tests with the oldest torch that is served, in a .venv-oldest of its own
	$(OLDEST)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

zoo: $(STAMP)  ## every model of the libraries, to docs/zoo.md (twenty to forty minutes on two cores)
	$(BIN)/python -m tests.zoo $(ARGS)

bench: $(STAMP)  ## the speed figures of docs/benchmarks, written to OUT (outputs/)
	@mkdir -p $(OUT)
	$(BIN)/tome-fx bench vit_small_patch16_224 --r 13 --batch-size 16 --num-bench-iter 24 --results-file $(OUT)/vit_small_patch16_224.json $(ARGS)
	$(BIN)/tome-fx bench vit_base_patch16_224 --r 16 --batch-size 8 --num-bench-iter 16 --results-file $(OUT)/vit_base_patch16_224.json $(ARGS)

suites: $(STAMP)  ## all sweeps with plots, to OUT (about an hour on two cores)
	$(BIN)/tome-fx bench --suite --out $(OUT) $(ARGS)

check: $(STAMP)  ## format, lint and types, changing nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(STAMP)  ## format, and mend what the linter can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean:  ## remove caches, builds and outputs, but not .venv
	rm -rf build dist outputs *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "tome_fx needs Python 3.10 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

# What torch asks for itself follows the release: its constraints are left out.
$(OLDEST)/installed: pyproject.toml constraints.txt
	rm -rf $(OLDEST) && $(PYTHON) -m venv $(OLDEST)
	grep -Ev '^(torch|torchvision|setuptools)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) \
		-c $(OLDEST)/constraints.txt 'torch==2.11.*' -e '.[test]'
	@touch $@
