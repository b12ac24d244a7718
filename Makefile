# make demo | test | check. All of them set up what they need first, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup check test demo clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
WORKERS ?= auto
MINUTES ?= 2

help:
	@echo 'make demo    HOPE from spec to generated text, in a few minutes'
	@echo 'make test    everything that must hold: ruff, mypy, all tests'
	@echo 'make check   ruff and mypy alone'
	@echo 'make clean   remove the virtual environment'

setup: $(READY)

# torch is asked for by one exact version, and before the rest: a range would let pip take a build that brings
# gigabytes of GPU libraries where a CPU build of that version is at hand. A torch that is there already stays.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'nlc needs Python 3.11 or newer; "$(PYTHON)" is older or missing. Say which: make PYTHON=python3.12 ...'; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  echo 'Installing torch ...'; $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0; }
	@echo 'Installing nlc and its tools ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# One thread a worker: the tests are many and small, and the workers already fill the cores.
test: check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 16 < /dev/null

demo: $(READY)
	@PATH="$$PWD/$(BIN):$$PATH" MINUTES=$(MINUTES) bash specs/demo.sh

clean:
	rm -rf $(VENV)
