# Every target sets up what it needs: a virtual environment, the build, the extras.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
export PIP_NO_INPUT := 1

# Build inputs: a change in any of them makes the next target rebuild (setup.py then compiles only what it touches).
SOURCES := setup.py pyproject.toml $(shell find csrc src -name '*.cpp' -o -name '*.hpp' -o -name '*.pyx' -o -name '*.pxd')

.DEFAULT_GOAL := help
.PHONY: help run test build lint types bench

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("edgefast needs CPython >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'pip>=25.1'
	@touch $@

$(VENV)/.build-deps: pyproject.toml | $(VENV)/.created
	$(PIP) install --group build
	@touch $@

$(VENV)/.built: $(SOURCES) $(VENV)/.build-deps
	$(PIP) install --no-build-isolation -e '.[cli,sklearn]'
	@touch $@

$(VENV)/.test-deps: pyproject.toml | $(VENV)/.built
	$(PIP) install --group test 'numba>=0.60'
	@touch $@

$(VENV)/.lint-deps: pyproject.toml | $(VENV)/.created
	$(PIP) install --group lint
	@touch $@

build: $(VENV)/.built ## virtual environment, native build, editable install

run: $(VENV)/.built ## the main job on real data: devices, sketch, queue, training, aggregation, report
	$(PY) -m edgefast run --out run-output $(ARGS)

test: $(VENV)/.built $(VENV)/.test-deps ## the whole test suite, on every backend and SIMD level of this machine
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.built $(VENV)/.lint-deps ## ruff and codespell
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell README.md CHANGELOG.md CONTRIBUTING.md docs src csrc tests bench examples

types: $(VENV)/.built $(VENV)/.test-deps $(VENV)/.lint-deps ## pyright on the code and on the completeness of public types
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/pyright --pythonpath $(PY) --verifytypes edgefast --ignoreexternal
