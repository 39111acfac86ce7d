# Every target sets itself up: a virtual environment in .venv, torch pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
# Python compiles what it imports when it does; pip would compile all of torch, for some 20 seconds.
INSTALL = -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt
# Tests, checks and benchmarks run on the wheel, in an environment that borrows torch from $(VENV).
WHEEL_VENV := build/wheel-env
WHEEL_PY := $(WHEEL_VENV)/bin/python
# Built once; what is added later, extras above all, comes from the same file.
WHEEL = $$(ls build/wheel/hfcore-*.whl)
SOURCES := $(shell find kernels bindings -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') \
  CMakeLists.txt pyproject.toml
MODULES = $(shell find hfcore bindings kernels -name '*.py')
PURELIB = import sysconfig; print(sysconfig.get_path('purelib'))

.DEFAULT_GOAL := help
.PHONY: help install train docs test test-full lint types bench bench-peers seeds fuzz fuzz-api clean \
  test-gpu bench-gpu sanitize-gpu

help:
	@echo "make train       install the checkout, teach an RNN to add by Hessian-free optimisation"
	@echo "make install     the same without the training"
	@echo "make docs        build the documentation site into build/site"
	@echo "make test        install, lint, type check and run the test suite"
	@echo "make test-full   the same with the slow tests"
	@echo "make bench       benchmark table against torch baselines; bench-peers adds other libraries"
	@echo "make seeds       the table of seeds in docs/results.md (hours)"
	@echo "make test-gpu    the GPU tests, bench-gpu the GPU benchmarks (an NVIDIA GPU, CuPy, Triton)"
	@echo "make fuzz        10,000 random calls of the compiled module under ASan and UBSan"
	@echo "make fuzz-api    10,000 random calls of the public interface"

# torch first and pinned: a plain `torch` would fetch gigabytes of CUDA libraries.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) $(INSTALL) torch
	@touch $@

# The checkout itself, importable from anywhere: Python files are used where they are. The kernels
# are those of this machine's processor alone, without CUDA's, which take minutes.
$(VENV)/hfcore.stamp: $(VENV)/torch.stamp $(SOURCES)
	$(PY) $(INSTALL) -e '.[plots]' --config-settings=build-dir=build/editable \
	  --config-settings=cmake.define.HFCORE_CUDA=OFF --config-settings=cmake.define.HFCORE_CPU=NATIVE
	@touch $@

# What users of a package get: every instruction set, CUDA's binaries where there is nvcc. Python
# files are copied, so the checkout itself is never on the path (tests run with python -P).
$(WHEEL_VENV)/wheel.stamp: $(SOURCES) $(MODULES)
	test -x $(WHEEL_PY) || $(PYTHON) -m venv $(WHEEL_VENV)
	rm -rf build/wheel
	$(WHEEL_PY) -m pip wheel --disable-pip-version-check -q --no-deps -w build/wheel .
	@touch $@

# Torch arrives while the wheel is built: where neither is there yet, both are made at a time.
$(WHEEL_VENV)/hfcore.stamp: constraints.txt $(SOURCES) $(MODULES) \
  $(if $(wildcard $(VENV)/torch.stamp),$(VENV)/torch.stamp,FORCE)
	@$(MAKE) -j 2 $(VENV)/torch.stamp $(WHEEL_VENV)/wheel.stamp
	$(PY) -c "$(PURELIB)" > "$$($(WHEEL_PY) -c "$(PURELIB)")/borrowed.pth"
	rm -rf $(WHEEL_VENV)/lib/python*/site-packages/hfcore*
	$(WHEEL_PY) $(INSTALL) --ignore-installed --no-deps $(WHEEL)
	$(WHEEL_PY) $(INSTALL) "$(WHEEL)[plots,tensorboard]"
	@touch $@
FORCE:

$(WHEEL_VENV)/test.stamp: $(WHEEL_VENV)/hfcore.stamp
	$(WHEEL_PY) $(INSTALL) "$(WHEEL)[test,dev,gates]"
	@touch $@

$(WHEEL_VENV)/bench.stamp: $(WHEEL_VENV)/hfcore.stamp
	$(WHEEL_PY) $(INSTALL) "$(WHEEL)[bench]"
	@touch $@

# torch is installed and pinned by now, so torchvision cannot drag in CUDA builds.
$(WHEEL_VENV)/peers.stamp: $(WHEEL_VENV)/bench.stamp bench/peers-constraints.txt
	$(WHEEL_PY) $(INSTALL) -c bench/peers-constraints.txt "$(WHEEL)[peers]"
	@touch $@

# Asked before CuPy is fetched, which is large.
$(WHEEL_VENV)/gpu.stamp: $(WHEEL_VENV)/test.stamp
	@$(WHEEL_PY) -P -c "import sys; from hfcore.bindings import cuda; why = cuda.why_no_device(); \
	  sys.exit(why and f'this target needs a CUDA device: {why}')"
	$(WHEEL_PY) $(INSTALL) "$(WHEEL)[cuda]"
	@touch $@

install: $(VENV)/hfcore.stamp

# A smaller net than the paper's: a few seconds. The paper's is the default of `hfcore train`.
train: $(VENV)/hfcore.stamp
	$(PY) -m hfcore train addition --length 30 --hidden 20 --batch-size 100 --seed 0 --require-solved
	@echo
	@echo "The net adds two numbers that it saw 15 to 30 steps ago. Look at the first plot above: the"
	@echo "share of wrong answers stays near 0.85, the best constant answer, and then falls to 0."
	@echo "Next, the net of the paper: $(VENV)/bin/hfcore train addition --length 30"

# What mkdocs and the gallery need, read from pyproject.toml: pip cannot install an extra alone.
# curvlinops brings torchvision, needs it for nothing here, and its build may be of another torch's
# kind, which is an error when lightning imports it.
DOCS = import tomllib; \
  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])
$(VENV)/docs.stamp: $(VENV)/hfcore.stamp pyproject.toml
	$(PY) $(INSTALL) -c bench/peers-constraints.txt $$($(PY) -c "$(DOCS)")
	$(PY) -m pip uninstall -q -y torchvision
	@touch $@

# Warnings are errors. Scripts of the gallery run once, and again when they change.
docs: $(VENV)/docs.stamp
	rm -rf build/package && mkdir -p build/package
	cp -r hfcore build/package/hfcore
	cp -r bindings kernels build/package/hfcore/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "the site: build/site/index.html"

lint: $(WHEEL_VENV)/test.stamp
	$(WHEEL_PY) -P -m ruff check .
	$(WHEEL_PY) -P -m ruff format --check .

# The three folders as the one package they install as; mypy silences what is in site-packages.
types: $(WHEEL_VENV)/test.stamp
	rm -rf build/types && mkdir -p build/types
	cp -r hfcore build/types/hfcore
	cp -r bindings kernels build/types/hfcore/
	cd build/types && $(abspath $(WHEEL_PY)) -P -m mypy --config-file $(CURDIR)/pyproject.toml -p hfcore

# A file stays with one process, for what its tests build once. One process more than most machines of
# CI have cores: tests of killed runs and of ranks wait half of their time. The longest files begin
# (tests/conftest.py), not those of most tests.
PYTEST := $(WHEEL_PY) -P -m pytest -n 3 --dist loadfile --no-loadscope-reorder
test: lint types
	$(PYTEST) -m "not slow and not gpu"

test-full: lint types
	$(PYTEST) -m "not gpu"

# With a GPU; each says so and exits where there is none.
test-gpu: $(WHEEL_VENV)/gpu.stamp
	$(WHEEL_PY) -P -m pytest -m gpu tests/gpu

bench-gpu: $(WHEEL_VENV)/gpu.stamp $(WHEEL_VENV)/bench.stamp
	$(WHEEL_PY) -P bench/gpu/run.py

sanitize-gpu: $(WHEEL_VENV)/gpu.stamp
	@command -v compute-sanitizer > /dev/null || \
	  { echo "sanitize-gpu needs compute-sanitizer of the CUDA toolkit in PATH" >&2; exit 2; }
	for tool in memcheck racecheck synccheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	  compute-sanitizer --tool $$tool --error-exitcode 9 $(WHEEL_PY) -P -m pytest -m gpu tests/gpu/test_ops.py \
	  -k "T1-B17 or T5-B65 or group" || exit 1; done

# An installation of its own, so that the ordinary one stays fast.
SANITIZED := build/sanitize-site
$(SANITIZED)/stamp: $(WHEEL_VENV)/test.stamp $(SOURCES) $(MODULES)
	$(WHEEL_PY) $(INSTALL) --no-deps --upgrade --target $(SANITIZED) . \
	  --config-settings=cmake.define.HFCORE_SANITIZE=ON --config-settings=build-dir=build/sanitize
	@touch $@

fuzz: $(SANITIZED)/stamp
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZED) \
	HFCORE_FUZZ_SANITIZED=1 HFCORE_FUZZ_CALLS=10000 $(WHEEL_PY) -P tests/fuzz/fuzz_native.py

fuzz-api: $(WHEEL_VENV)/test.stamp
	$(WHEEL_PY) -P tests/fuzz/fuzz_api.py

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .hypothesis .benchmarks

bench: $(WHEEL_VENV)/bench.stamp
	mkdir -p build
	$(WHEEL_PY) -P -m pytest bench --benchmark-quiet --benchmark-json=build/bench.json
	$(WHEEL_PY) -P bench/report.py build/bench.json

bench-peers: $(WHEEL_VENV)/peers.stamp
	$(MAKE) bench

seeds: $(VENV)/hfcore.stamp
	$(PY) -P bench/seed_table.py
