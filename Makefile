# Two commands on a fresh machine with Python 3.11+, pip and make: `make demo` and `make test`.
# Stamps inside .venv keep a second run from installing again.

PYTHON  ?= python3
WORKERS ?= 2
OUT     ?= demo-report

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-gpu docs lint types format bench cli-snapshot clean

help:
	@echo "make demo      install, explain a behaviour of the bundled model, say where the report is"
	@echo "make test      install and run the default tests"
	@echo "make test-all  the same with the slow ones"
	@echo "make docs      build the documentation, warnings are errors"
	@echo "make lint      ruff; make types: pyright; make format: rewrite"
	@echo "make bench     benchmarks, JSON lines"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "mechscope needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that pip takes a CPU build where its index or link folder offers one.
$(VENV)/.torch-installed: constraints.txt | $(BIN)/python
	@echo "installing torch (the big one) ..."
	$(BIN)/python -m pip install --constraint constraints.txt torch
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch-installed
	@echo "installing mechscope ..."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.installed
	@echo "installing what the tests need ..."
	$(INSTALL) --editable ".[dev]"
	@touch $@

$(VENV)/.bench-installed: $(VENV)/.installed
	$(INSTALL) --editable ".[bench]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/mechscope demo --out $(OUT)
	@echo "The report: $(OUT)/report.html"

# tests/refusals runs on its own, without the shape-checking import hook: under the hook a mismatch between two
# annotated arguments raises the hook's error before ours. tests/conftest.py decides by the paths it is given.
test: $(VENV)/.dev-installed
	$(PYTEST)
	@if [ -d tests/refusals ]; then $(PYTEST) tests/refusals; fi

test-all: $(VENV)/.dev-installed
	$(PYTEST) -m "not gpu"
	@if [ -d tests/refusals ]; then $(PYTEST) -m "not gpu" tests/refusals; fi

test-gpu: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m gpu

docs: $(VENV)/.dev-installed
	$(BIN)/python docs/write_tables.py --check
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev-installed
	$(BIN)/pyright

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.bench-installed
	$(BIN)/python -m benchmarks

cli-snapshot: $(VENV)/.dev-installed
	PYTHONPATH=src:tests $(BIN)/python -m guards.command_line

clean:
	rm -rf $(VENV) docs/_build demo-report .pytest_cache .ruff_cache .hypothesis
