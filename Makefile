# Every target sets itself up: a virtual environment in .venv, torch pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -q -c constraints.txt
# Built once; what is added later, extras above all, comes from the same file.
WHEEL = $$(ls $(VENV)/wheel/hfcore-*.whl)
SOURCES := $(shell find kernels bindings -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') \
  CMakeLists.txt pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help install train test test-full lint types bench bench-peers seeds fuzz fuzz-api clean \
  test-gpu bench-gpu sanitize-gpu

help:
	@echo "make train       teach an RNN the addition problem by Hessian-free optimisation"
	@echo "make test        install, lint, type check and run the test suite"
	@echo "make test-full   the same with the slow tests"
	@echo "make bench       benchmark table against torch baselines; bench-peers adds other libraries"
	@echo "make seeds       the table of seeds in the README (hours)"
	@echo "make test-gpu    the GPU tests, bench-gpu the GPU benchmarks (an NVIDIA GPU, CuPy, Triton)"
	@echo "make fuzz        10,000 random calls of the compiled module under ASan and UBSan"
	@echo "make fuzz-api    10,000 random calls of the public interface"

# torch first and pinned: a plain `torch` would fetch gigabytes of CUDA libraries.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

# Compiled once and copied into the environment; Python files are copied too, so the checkout
# itself is never on the path (tests run with python -P).
$(VENV)/hfcore.stamp: $(VENV)/torch.stamp $(SOURCES) $(shell find hfcore bindings kernels -name '*.py')
	rm -rf $(VENV)/wheel
	$(PY) -m pip wheel --disable-pip-version-check -q --no-deps -w $(VENV)/wheel .
	$(PIP) --force-reinstall --no-deps $(WHEEL)
	$(PIP) $(WHEEL)
	@touch $@

$(VENV)/test.stamp: $(VENV)/hfcore.stamp
	$(PIP) "$(WHEEL)[test,dev,gates]"
	@touch $@

$(VENV)/bench.stamp: $(VENV)/hfcore.stamp
	$(PIP) "$(WHEEL)[bench]"
	@touch $@

# torch is installed and pinned by now, so torchvision cannot drag in CUDA builds.
$(VENV)/peers.stamp: $(VENV)/bench.stamp bench/peers-constraints.txt
	$(PIP) -c bench/peers-constraints.txt "$(WHEEL)[peers]"
	@touch $@

# Asked before CuPy is fetched, which is large.
$(VENV)/gpu.stamp: $(VENV)/test.stamp
	@$(PY) -P -c "import sys; from hfcore.bindings import cuda; why = cuda.why_no_device(); \
	  sys.exit(why and f'this target needs a CUDA device: {why}')"
	$(PIP) "$(WHEEL)[cuda]"
	@touch $@

install: $(VENV)/hfcore.stamp

train: $(VENV)/hfcore.stamp
	$(PY) -P -m hfcore train addition --length 30 --optimizer hf --seed 0 --require-solved

lint: $(VENV)/test.stamp
	$(PY) -P -m ruff check .
	$(PY) -P -m ruff format --check .

# The three folders as the one package they install as; mypy silences what is in site-packages.
types: $(VENV)/test.stamp
	rm -rf build/types && mkdir -p build/types
	cp -r hfcore build/types/hfcore
	cp -r bindings kernels build/types/hfcore/
	cd build/types && $(abspath $(PY)) -P -m mypy --config-file $(CURDIR)/pyproject.toml -p hfcore

# A file stays with one process, for what its tests build once.
test: lint types
	$(PY) -P -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-full: lint types
	$(PY) -P -m pytest -m "not gpu" -n 2 --dist loadfile

# With a GPU; each says so and exits where there is none.
test-gpu: $(VENV)/gpu.stamp
	$(PY) -P -m pytest -m gpu tests/gpu

bench-gpu: $(VENV)/gpu.stamp $(VENV)/bench.stamp
	$(PY) -P bench/gpu/run.py

sanitize-gpu: $(VENV)/gpu.stamp
	@command -v compute-sanitizer > /dev/null || \
	  { echo "sanitize-gpu needs compute-sanitizer of the CUDA toolkit in PATH" >&2; exit 2; }
	for tool in memcheck racecheck synccheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	  compute-sanitizer --tool $$tool --error-exitcode 9 $(PY) -P -m pytest -m gpu tests/gpu/test_ops.py \
	  -k "T1-B17 or T5-B65 or group" || exit 1; done

# An installation of its own, so that the ordinary one stays fast.
SANITIZED := build/sanitize-site
$(SANITIZED)/stamp: $(VENV)/test.stamp $(SOURCES) $(shell find hfcore bindings kernels -name '*.py')
	$(PIP) --no-deps --upgrade --target $(SANITIZED) . \
	  --config-settings=cmake.define.HFCORE_SANITIZE=ON --config-settings=build-dir=build/sanitize
	@touch $@

fuzz: $(SANITIZED)/stamp
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZED) \
	HFCORE_FUZZ_SANITIZED=1 HFCORE_FUZZ_CALLS=10000 $(PY) -P tests/fuzz/fuzz_native.py

fuzz-api: $(VENV)/test.stamp
	$(PY) -P tests/fuzz/fuzz_api.py

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .hypothesis .benchmarks

bench: $(VENV)/bench.stamp
	mkdir -p build
	$(PY) -P -m pytest bench --benchmark-quiet --benchmark-json=build/bench.json
	$(PY) -P bench/report.py build/bench.json

bench-peers: $(VENV)/peers.stamp
	$(MAKE) bench

seeds: $(VENV)/hfcore.stamp
	$(PY) -P bench/seed_table.py
