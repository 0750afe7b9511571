# Each command sets up what it needs in .venv; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-slow test-all lint

quickstart: $(VENV)/installed
	$(BIN)/python -m lab.quickstart --workdir runs/quickstart

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow --slow -v

test-all: test test-slow

lint: $(VENV)/installed-test
	$(BIN)/ruff check .

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	touch $@
