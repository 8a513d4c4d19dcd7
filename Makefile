# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types layers check clean

demo: $(VENV)/.stamp-demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -n 2 $(PYTEST)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

layers: $(VENV)/.stamp-dev
	$(BIN)/lint-imports --no-cache

check: lint types layers test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first, by its exact version: no other package's wish then pulls another build.
$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) -e '.[torch,plot]'
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-demo
	$(PIP) -e '.[torch,hf,plot,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
