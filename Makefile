# Every target sets up what it needs: a virtual environment, the build, the extras.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
export PIP_NO_INPUT := 1

# Build inputs: a change in any of them makes the next target rebuild (setup.py then compiles only what it touches).
SOURCES := setup.py pyproject.toml $(shell find csrc src -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd')

.DEFAULT_GOAL := help
.PHONY: help build run test pure engine lint types bench attacks bench-smoke cpp aarch64 asan tsan model soak wheel docs clean

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
	# Required here: a silent fall-back to pure Python would leave the last build's extensions in the source tree.
	EDGEFAST_REQUIRE_EXTENSIONS=1 $(PIP) install --no-build-isolation -e '.[cli,sklearn]'
	@touch $@

$(VENV)/.test-deps: pyproject.toml | $(VENV)/.built
	$(PIP) install --group test 'numba>=0.60' 'ml-dtypes>=0.4' 'safetensors>=0.4' 'cryptography>=42' 'dp-accounting>=0.4.4'
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
	PYTHONPATH=src $(VENV)/bin/pyright --pythonpath $(PY) --verifytypes edgefast --ignoreexternal

$(VENV)/.bench-deps: bench/requirements.txt pyproject.toml | $(VENV)/.built $(VENV)/.test-deps
	$(PIP) install -r bench/requirements.txt
	@touch $@

bench: $(VENV)/.built $(VENV)/.test-deps $(VENV)/.bench-deps ## all benchmarks against their peers: table, JSON, plot in bench-results/
	@mkdir -p bench-results
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(PY) -m pytest bench --benchmark-only --passes 3 --benchmark-json=bench-results/raw.json --benchmark-columns=median -q $(ARGS)
	$(PY) bench/report.py bench-results/raw.json bench-results

attacks: $(VENV)/.built ## accuracy of every robust rule under every attack, into docs/attacks.md and bench-results/
	$(PY) bench/aggregate/attacks.py --page docs/attacks.md --json bench-results/attacks.json $(ARGS)

bench-smoke: $(VENV)/.built $(VENV)/.test-deps ## every benchmark once, answers checked, nothing timed
	$(PY) -m pytest bench --benchmark-disable -q $(ARGS)

pure: $(VENV)/.test-deps ## the suite on the pure-Python package, as a machine without a compiler gets it
	$(PYTHON) -m venv --clear .venv-pure
	.venv-pure/bin/python -m pip --disable-pip-version-check -q install 'pip>=25.1'
	EDGEFAST_NO_EXTENSIONS=1 .venv-pure/bin/python -m pip --disable-pip-version-check -q install '.[sklearn,cli]' --group test
	.venv-pure/bin/python -m pytest tests $(ARGS)

engine: $(VENV)/.created ## tests against Flower, byzfl and torch, in an environment of their own
	$(PYTHON) -m venv --clear .venv-engine
	.venv-engine/bin/python -m pip --disable-pip-version-check -q install 'pip>=25.1'
	EDGEFAST_REQUIRE_EXTENSIONS=1 .venv-engine/bin/python -m pip --disable-pip-version-check -q install '.[sklearn]' --group test --group engine 'ml-dtypes>=0.4' 'safetensors>=0.4'
	FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 .venv-engine/bin/python -m pytest tests/aggregate tests/sketch \
	  tests/integrations tests/test_docs.py -k "peers or torch or flower" $(ARGS)

cpp: ## C++ unit tests of the lock-free parts
	$(MAKE) -j2 -C csrc/tests unit

tsan: ## C++ tests under ThreadSanitizer
	$(MAKE) -j2 -C csrc/tests tsan

model: ## the lock-free parts and SharedQueue's protocol under a model checker, every memory order weakened in turn (needs relacy-dev)
	$(MAKE) -C csrc/tests model

soak: $(VENV)/.built $(VENV)/.test-deps ## shared queues under KILLS random kills (default 12000), then queues under random time-outs and shutdowns for SECONDS (default 180)
	$(MAKE) -C csrc/tests soak
	EDGEFAST_SOAK_SECONDS=$(or $(SECONDS),180) $(PY) -m pytest tests/queues -k soak --timeout 0 -q $(ARGS)

aarch64: ## the C++ kernels on emulated ARM64 (needs g++-aarch64-linux-gnu and qemu-user)
	$(MAKE) -j2 -C csrc/tests aarch64

# The sanitizer's runtime must come first in the process, and CPython's own allocator would hide errors from it.
asan: $(VENV)/.created ## C++ tests and the whole suite under AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) -j2 -C csrc/tests asan
	$(PYTHON) -m venv --clear .venv-asan
	.venv-asan/bin/python -m pip --disable-pip-version-check -q install 'pip>=25.1'
	EDGEFAST_SANITIZE=address,undefined EDGEFAST_REQUIRE_EXTENSIONS=1 .venv-asan/bin/python -m pip --disable-pip-version-check -q install '.[sklearn,cli]' --group test
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  .venv-asan/bin/python -m pytest tests -s $(ARGS)

wheel: $(VENV)/.created ## sdist, a tested wheel for every CPython >= 3.11 found, and the pure wheel, in dist/
	$(PY) tools/wheels.py $(ARGS)

docs: $(VENV)/.built $(VENV)/.test-deps ## run the code on every page and every example
	$(PY) -m pytest tests/test_docs.py -q

clean: ## remove everything the build made
	rm -rf .venv .venv-pure .venv-asan .venv-engine build dist bench-results run-output src/*.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find src -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
