# Everything runs in .venv, which the first target that needs it creates with pip, at the versions of constraints.txt.
# PyPI's torch for Linux brings CUDA's libraries (a large download). On a machine without a GPU, an index of CPU wheels
# serves as well: set PIP_EXTRA_INDEX_URL (or PIP_FIND_LINKS) to it; `torch==2.13.0` accepts its `2.13.0+cpu`.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --progress-bar off --disable-pip-version-check --constraint constraints.txt
QUICK := not gpu and not network and not slow and not saelens and not lm_eval

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv demo test lint coverage mutants format bench figures tables docs serve clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: .venv/.installed-dev  ## create .venv with everything that development needs

demo: .venv/.installed  ## train SAEs on the embedded model's layers and write a report
	$(BIN)/strata train demo --overwrite

test: .venv/.installed-dev  ## run the quick tests (ARGS="-k gates -x" narrows them)
	$(BIN)/python -m pytest -m "$(QUICK)" --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: .venv/.installed-dev  ## check style, dead code and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vulture
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

coverage: .venv/.installed-dev  ## run the quick tests and say which lines of src they miss
	mkdir -p build/coverage
	$(BIN)/python -m pytest -m "$(QUICK)" --numprocesses auto --maxprocesses 4 --dist loadfile \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(ARGS)

mutants: .venv/.installed-dev  ## see whether the tests notice small changes of the mathematics (ARGS="--share 1" takes all)
	$(BIN)/python scripts/mutants.py $(ARGS)

format: .venv/.installed-dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed-dev  ## time the SAE step and the stream on this machine (peers too, where installed)
	$(BIN)/strata bench
	$(BIN)/python benchmarks/stream.py

figures: .venv/.installed-dev  ## measure every figure of README and docs again: 1 to 6 hours (ARGS="--only gates" narrows them)
	$(BIN)/python benchmarks/figures.py $(ARGS)

tables: .venv/.installed-dev  ## write the tables of README and docs from the results that are there
	$(BIN)/python benchmarks/figures.py --tables

docs: .venv/.installed-docs  ## build the pages of docs/ into build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve: .venv/.installed-docs  ## show the pages of docs/ on http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:  ## remove caches and build products, never runs, models or .venv
	rm -rf dist build/lib build/bdist.* .pytest_cache .ruff_cache src/*.egg-info
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than what it was made from: then pip runs again, and changes only what differs.
.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Strata and what it needs into .venv (minutes the first time, most of it torch) ..."
	@$(PIP) --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Strata, its test and lint tools into .venv (minutes the first time, most of it torch) ..."
	@$(PIP) --editable '.[dev,data]'
	@touch $@ .venv/.installed

.venv/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Strata and what its documentation needs into .venv ..."
	@$(PIP) --editable '.[docs]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "Strata needs Python 3.11 or newer; there is no '$(PYTHON)' on the PATH." \
			"Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Strata needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
		echo "'$(PYTHON) -m venv' failed. Where Python comes from the system's packages, its venv module is one of its own" \
			"(on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
