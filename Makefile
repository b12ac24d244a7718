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
# The demo's model learns most in two minutes when it is small and its spans are long: see many bytes, in many steps.
# One thread: its operations are so small that a second one mostly waits.
SIZE ?= --set width=64 --set depth=1 --set chunk=32 --set 'periods=[32, 128]' --set rate=6e-3
TRAIN ?= --batch 8 --length 256 --threads 1 --val-bytes 16384 --val-every 100
PROMPT ?= def __init__(self
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

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
	  echo 'Installing torch ...'; $(BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0; }
	@echo 'Installing nlc and its tools ...'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# One thread a worker: the tests are many and small, and the workers already fill the cores.
test: check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 16 < /dev/null

# The corpus is the source of Python's own standard library: text that every machine with Python has.
# Its tables (encodings, pydoc_data) and tests are left out.
# A new folder each time, so that no demo removes the run of another.
demo: $(READY)
	@export PATH="$(abspath $(BIN)):$$PATH"; say() { printf '\n== %s\n' "$$*"; }; \
	command -v dot > /dev/null || { \
	  echo 'Installing graphviz, which draws the pictures ...'; \
	  $(AS_ROOT) apt-get install -y -qq graphviz > /dev/null 2>&1 < /dev/null || true; }; \
	out=runs/demo; n=2; while [ -e $$out ]; do out=runs/demo-$$n; n=$$((n + 1)); done; mkdir -p $$out; \
	say 'Check the spec'; nlc check hope; \
	say 'Draw its levels'; \
	if command -v dot > /dev/null; then picture=$$out/levels.svg; else picture=$$out/levels.mmd; \
	  echo 'There is no program dot here (install graphviz): the picture is Mermaid text instead.'; fi; \
	nlc graph hope -o $$picture; echo $$picture; \
	say 'Compile it'; nlc build hope $(SIZE) -o $$out/hope.py; echo "$$out/hope.py, $$(wc -l < $$out/hope.py) lines"; \
	say 'Train it'; \
	text=$$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))'); \
	nlc train hope $(SIZE) --data "$$text" --only '*.py' --skip site-packages --skip 'test*' --skip '*_test' \
	  --skip encodings --skip pydoc_data \
	  --out $$out --minutes $(MINUTES) $(TRAIN); \
	say 'Write text'; nlc generate $$out --prompt '    $(PROMPT)' --tokens 400 --top-k 20 --threads 1 --memory $$out/memory; \
	say "The results are in $$out"; \
	echo "  $$picture  who learns how often, and what passes between them"; \
	echo "  $$out/hope.py  the program that was generated"; \
	echo "  $$out/log.jsonl  the losses; curves: $(BIN)/tensorboard --logdir $$out"; \
	echo "  more training: $(BIN)/nlc train --resume $$out --minutes 30"

clean:
	rm -rf $(VENV)
