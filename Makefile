# make demo         the main job on simulated data: figures and a picture in demo/
# make test         all tests, but the long ones; ARGS="..." goes to pytest
# make lint         style and types
# make docs         bring the generated parts of README.md and docs/ up to date
# make docs-check   the examples of README.md and docs/
# make bench        speed and memory against the reference pipeline, which must be installed
#
# Everything runs in a virtual environment in .venv, made on first use.  Needed beforehand: make and
# Python 3.11 or later with its module venv (on Debian and Ubuntu: apt-get install make python3-venv).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test lint docs docs-check bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is missing or too old: Python 3.11 or later is needed (make PYTHON=python3.12 ...)"; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "venv is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# the package and what it needs; the sources are used in place
$(VENV)/.package: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# also what the tests need
$(VENV)/.test: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.package

demo: $(VENV)/.package
	$(BIN)/musedask demo demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy musedask

docs: $(VENV)/.package
	$(BIN)/python docs/update.py

docs-check: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
