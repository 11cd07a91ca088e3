# weft. `make help` lists what there is; `make demo` and `make test` each work as the first command.

VENV   ?= .venv
CXX    ?= g++
# A name given on the command line or in the environment wins; else the first that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; echo python3)
# Options for pip, for example an index with CPU-only builds of PyTorch.
PIP_ARGS ?=
# Test processes: one a core, four at most (each may build and run a simulator).
JOBS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
# Options for pytest and for `weft demo`.
ARGS ?=

BIN  := $(VENV)/bin
DEMO := $(VENV)/.installed-demo
DEV  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test formal mutation lint format docs clean check-python check-cxx

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON=$(PYTHON) CXX=$(CXX) JOBS=$(JOBS) PIP_ARGS= ARGS="

demo: check-cxx $(DEMO) ## train, quantize, compile and run a network on the simulated hardware
	$(BIN)/weft demo $(ARGS)

test: check-cxx $(DEV) ## every test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

formal: $(DEV) ## prove properties of the gateware's units (about 10 minutes)
	PYTHONPATH=tests $(BIN)/python -m formal $(ARGS)

mutation: check-cxx $(DEV) ## single-line faults in the gateware, and which test notices each
	PYTHONPATH=tests $(BIN)/python -m mutation $(ARGS)

lint: $(DEV) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV) ## regenerate the reference pages from their declarations
	$(BIN)/python -m weft_hw.reference docs
	$(BIN)/python -m weft.frontends.tflite_reference docs
	PYTHONPATH=tests $(BIN)/python -m exactness docs

clean: ## remove the environment, caches and outputs (not the cache in your home directory)
	rm -rf $(VENV) build dist weft-out sim_build .mypy_cache .ruff_cache .pytest_cache
	find hw sim sw tests -name __pycache__ -prune -exec rm -rf {} +
	rm -rf *.egg-info hw/*.egg-info sim/*.egg-info sw/*.egg-info

# The stamps make an edit of the requirements reinstall, and nothing else. `dev` includes `demo`.
$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[demo]"
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $(DEMO) $@

$(BIN)/python:
	@$(MAKE) --no-print-directory check-python
	@echo "creating $(VENV) with $$($(PYTHON) --version); the packages take a few minutes"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

check-python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "weft needs Python 3.11 or newer, and '$(PYTHON)' was not found."; \
	  echo "Install it (Debian, Ubuntu: sudo apt install python3 python3-venv; Fedora: sudo dnf install python3;"; \
	  echo "macOS: brew install python), or name yours: make PYTHON=/path/to/python3"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "weft needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Install a newer one (Ubuntu: sudo apt install python3.12 python3.12-venv; Fedora: sudo dnf install python3.12;"; \
	  echo "macOS: brew install python; elsewhere: https://docs.astral.sh/uv) and name it: make PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' comes without its venv module, which weft needs to make $(VENV)."; \
	  echo "Install it (Debian, Ubuntu: sudo apt install python3-venv, or python3.x-venv for another version)."; exit 1; } >&2

check-cxx:
	@command -v $(firstword $(CXX)) >/dev/null 2>&1 || { \
	  echo "weft compiles its simulators and needs a C++ compiler; '$(CXX)' was not found."; \
	  echo "Install one (Debian, Ubuntu: sudo apt install g++ make; Fedora: sudo dnf install gcc-c++ make;"; \
	  echo "macOS: xcode-select --install), or name yours: make CXX=clang++"; exit 1; } >&2
	@echo '#include <vector>' | $(CXX) -std=c++20 -fsyntax-only -x c++ - 2>/dev/null || { \
	  echo "The C++ compiler '$(CXX)' cannot compile a one-line C++20 program; weft's simulators need that (GCC 10, Clang 12 or newer)."; \
	  echo "See the reason with: echo '#include <vector>' | $(CXX) -std=c++20 -fsyntax-only -x c++ -"; exit 1; } >&2
