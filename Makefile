# Each command sets up what it needs in .venv; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SAY_INSTALL = @echo "Installing $(1) in $(2). This takes a few minutes, and pip prints nothing."

.PHONY: quickstart test test-slow test-all test-aot plan-env vllm-env chromium lint docs docs-links
.PHONY: coverage audit mutate

quickstart: $(VENV)/installed
	$(BIN)/python -m lab.quickstart --workdir runs/quickstart

test: $(VENV)/installed-test lint docs
	$(BIN)/python -m pytest -n 2 --durations=20

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow --slow -vv --durations=20

test-all: test test-slow

# Which branches of the package the fast tests take, by file; takes about twice as long as they do.
coverage: $(VENV)/installed-checks
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

# 200 small faults in the method, of which the tests must find 90 %; takes up to 30 minutes.
mutate: $(VENV)/installed-test
	$(BIN)/python -m tests.mutate

# Asks the web for known vulnerabilities of the exact set of packages.
audit: $(VENV)/installed-checks
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# Compilers for GPUs and TPUs that are not there: 5 GB, so in an environment of its own.
AOT_VENV ?= .venv-aot
AOT = JAX_PLATFORMS=cpu $(AOT_VENV)/bin/python

plan-env: $(AOT_VENV)/installed

test-aot: plan-env
	$(AOT) -m pytest tests/aot -v

# vLLM on a CPU: 3.5 GB, with versions of its own; see third_party/vllm/README.md.
VLLM_VENV = third_party/vllm/.venv

vllm-env: $(VLLM_VENV)/installed

# Debian's Chromium, in which the tests look at the pages of runs; without it they are left out.
SUDO = $(shell test "$$(id -u)" = 0 || echo sudo)

chromium:
	command -v chromium || { $(SUDO) apt-get update -q && \
	  $(SUDO) apt-get install -qq --no-install-recommends chromium fonts-dejavu-core; }

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes docs/_build/html; a link that leads nowhere, and any other warning, is an error.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# Asks the web whether the pages that the docs link to are still there.
docs-links: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

$(VENV)/installed: setup.py constraints.txt
	$(call SAY_INSTALL,shadowft_jax,$(VENV))
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(call SAY_INSTALL,what the tests need,$(VENV))
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/installed-checks: $(VENV)/installed-test
	$(call SAY_INSTALL,what coverage and audit need,$(VENV))
	$(PIP) -e '.[checks]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(call SAY_INSTALL,what the docs need,$(VENV))
	$(PIP) -e '.[docs]'
	touch $@

$(AOT_VENV)/installed: setup.py constraints.txt
	$(call SAY_INSTALL,compilers for GPUs and TPUs (5 GB),$(AOT_VENV))
	$(PYTHON) -m venv $(AOT_VENV)
	$(AOT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[cuda13]' libtpu pytest
	touch $@

# Its torchvision does not load beside its torch, and is not needed.
$(VLLM_VENV)/installed: third_party/vllm/requirements.txt third_party/vllm/name.py
	$(call SAY_INSTALL,vLLM (3.5 GB),$(VLLM_VENV))
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r third_party/vllm/requirements.txt
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python third_party/vllm/name.py
	touch $@
