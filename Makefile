# make demo | test | test-integrations | test-full | test-aarch64 | test-gpu | chaos | gpu-day-dry | sass | docs | check | names | format | sanitize | fuzz | peers | clean. All of it in .venv, models/, out/ and build/.
PYTHON ?= python3
BIN    := .venv/bin
MODEL  := models/smollm2-135m-instruct
JOB    := examples/documents.jsonl
SOURCES := $(shell find csrc batchllm -type f -not -name '*.pyc') setup.py pyproject.toml CMakeLists.txt batchllm_ext.pyi

.PHONY: help demo test test-integrations test-full test-gpu gpu-day-dry test-aarch64 test-cpp test-python sass sanitize fuzz chaos peers docs check names format clean

help:
	@sed -n 1p Makefile

CHECK_PYTHON = import sys; sys.version_info >= (3, 10) or sys.exit("BatchLLM needs Python 3.10 or later, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || { $(PYTHON) -c '$(CHECK_PYTHON)' && $(PYTHON) -m venv .venv; }
	$(BIN)/pip install -q --disable-pip-version-check '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps 'xgrammar>=0.2.8,<0.3' 'apache-tvm-ffi>=0.1.11,<0.2'
	@touch $@

$(MODEL)/config.json: examples/fetch_model.py | .venv/installed
	$(BIN)/python examples/fetch_model.py $(MODEL)
	@touch $@

# This many lines of the job take about as long without prefix sharing as all 64 take with it.
PART := 11

demo: .venv/installed $(MODEL)/config.json
	@mkdir -p out
	$(BIN)/batchllm run $(JOB) -o out/answers.jsonl --model $(MODEL) --json-summary out/summary.json --overwrite
	head -n $(PART) $(JOB) | $(BIN)/batchllm run - -o out/answers_levels0.jsonl --model $(MODEL) --levels 0 \
	  --json-summary out/summary_levels0.json --overwrite
	@$(BIN)/python examples/show_answers.py $(JOB) out/answers.jsonl out/summary.json out/summary_levels0.json
	@$(BIN)/batchllm report out/answers.jsonl -o out/report.html --overwrite

test: test-cpp test-python

# Also what takes minutes: every emulated kernel with threads in random order, random calls into the native module for
# FUZZ_SECONDS, and a dry run of the programs for a day with a GPU. The real Gemma 3 is fetched and tried only with
# GEMMA_TERMS=accepted (https://ai.google.dev/gemma/terms).
test-full: test-cpp test-python gpu-day-dry
	BATCHLLM_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -m 'full$(if $(filter accepted,$(GEMMA_TERMS)), or gemma)'

gpu-day-dry: .venv/installed
	GPU_DAY_DRY=1 OUT=out/gpu_day_dry PYTHON=$(BIN)/python bash benchmarks/gpu_day/run.sh

# The tests that need a GPU, and the kernels under compute-sanitizer if it is on PATH. They use the interpreter PYTHON and
# what benchmarks/gpu_day/prepare.sh has put into .gpu/ (the stage env builds the extension if it is missing). No package
# index is used and nothing is installed.
GPU_PYTHON := bash benchmarks/gpu_day/python.sh
STANDIN    := build/standin
test-gpu: export BATCHLLM_TEST_MODEL := $(if $(wildcard $(MODEL)/config.json),$(MODEL),$(STANDIN))
test-gpu:
	$(GPU_PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu needs a GPU that torch sees")'
	STAGES=env OUT=out/test_gpu bash benchmarks/gpu_day/run.sh
	test -f $(BATCHLLM_TEST_MODEL)/config.json || $(GPU_PYTHON) -m benchmarks.gpu_day.standin $(STANDIN)
	$(GPU_PYTHON) -m pytest -m gpu
	! command -v compute-sanitizer || compute-sanitizer --error-exitcode 1 $(GPU_PYTHON) -m pytest -m gpu tests/attention tests/rows

# doctest is one header. If the system lacks it, Debian's package is unpacked into build/; nothing is installed.
build/doctest/usr/include/doctest/doctest.h:
	mkdir -p build/doctest
	cd build/doctest && { apt-get download doctest-dev || { apt-get update && apt-get download doctest-dev; } } \
	  || { echo 'the C++ tests need the doctest header: install doctest (Debian: doctest-dev)'; exit 1; }
	dpkg-deb -x build/doctest/doctest-dev_*.deb build/doctest

DOCTEST := $(firstword $(wildcard /usr/include/doctest/doctest.h /usr/local/include/doctest/doctest.h) \
             build/doctest/usr/include/doctest/doctest.h)

# Here the CUDA kernels run on the emulator; the package's own build compiles them for a GPU.
CMAKE_TESTS = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DBATCHLLM_PYTHON=OFF -DBATCHLLM_CUDA=OFF \
  -DBATCHLLM_TESTS=ON -DDOCTEST_INCLUDE_DIR=$(abspath $(dir $(DOCTEST))..)

test-cpp: .venv/installed $(DOCTEST)
	$(CMAKE_TESTS) -B build/cpp -DBATCHLLM_WERROR=ON > build/cpp.log
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure

# The planner, the simulator and the kernels for 64-bit ARM, under QEMU, with a twentieth of the planner's random jobs.
# Needs Debian's g++-aarch64-linux-gnu and qemu-user-static.
AARCH64 := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static;-L;/usr/aarch64-linux-gnu'

test-aarch64: DOCTEST = build/doctest/usr/include/doctest/doctest.h
test-aarch64: .venv/installed build/doctest/usr/include/doctest/doctest.h
	$(CMAKE_TESTS) -B build/aarch64 -DBATCHLLM_WERROR=ON $(AARCH64) > build/aarch64.log
	$(BIN)/cmake --build build/aarch64
	$(BIN)/ctest --test-dir build/aarch64 --output-on-failure

# The files in parallel, one thread each: most of the time is Python's.
test-python: .venv/installed $(MODEL)/config.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

# With the real packages: a folder with a requirements.txt has its own environment under build/integrations, which sees
# .venv's packages after its own. `make test-integrations/ray` runs one. Some lists are complete, because pip would add
# CUDA packages.
COMPLETE := flashinfer sglang vllm
APART := $(patsubst tests/integrations/%/requirements.txt,%,$(wildcard tests/integrations/*/requirements.txt))

.PRECIOUS: build/integrations/%/installed
build/integrations/%/installed: tests/integrations/%/requirements.txt .venv/installed
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(echo $(@D)/lib/python*/site-packages)/shared.pth
	$(@D)/bin/pip install -q --disable-pip-version-check $(if $(filter $*,$(COMPLETE)),--no-deps) -r $<
	@touch $@

test-integrations/%: build/integrations/%/installed $(MODEL)/config.json
	OMP_NUM_THREADS=1 build/integrations/$*/bin/python -m pytest tests/integrations/$*

test-integrations: $(MODEL)/config.json $(APART:%=test-integrations/%)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integrations

# The machine code of the kernels, compared with tests/sass/bars.json; needs nvcc but no GPU.
.venv/sass-installed: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(BIN)/pip install -q --disable-pip-version-check --no-deps nvidia-cutlass
	@touch $@

sass: .venv/sass-installed
	$(BIN)/python -m tests.sass.sass

# The C++ tests with assertions, except the emulator's: under the address and undefined behaviour sanitizers, and the
# planner's under the thread sanitizer (libgomp, which the attention kernels use, is not built for that one).
SANITIZED = -DBATCHLLM_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG='-O1 -g'

sanitize: .venv/installed $(DOCTEST)
	$(CMAKE_TESTS) -B build/asan $(SANITIZED) -DBATCHLLM_SANITIZE=address,undefined > build/asan.log
	$(BIN)/cmake --build build/asan
	$(BIN)/ctest --test-dir build/asan --output-on-failure
	$(CMAKE_TESTS) -B build/tsan $(SANITIZED) -DBATCHLLM_SANITIZE=thread > build/tsan.log
	$(BIN)/cmake --build build/tsan --target test_planner
	build/tsan/tests/test_planner

# Random jobs against the planner's promises, for FUZZ_SECONDS; a failure names its seed.
FUZZ_SECONDS ?= 60
fuzz: test-cpp
	BATCHLLM_FUZZ_SECONDS=$(FUZZ_SECONDS) build/cpp/tests/test_planner -tc='*as long as one likes*'

# The guide, the design, and the API from docstrings and the stub, as pages in build/docs.
.venv/docs-installed: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check '.[docs]'
	@touch $@

docs: .venv/docs-installed
	mkdir -p build/api && cp batchllm_ext.pyi build/api/batchllm_ext.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

# A job that is killed KILLS times and resumed each time: every line is answered once, as in an undisturbed run.
KILLS ?= 100
chaos: .venv/installed
	$(BIN)/python -m tests.jobs.chaos $(KILLS)

# Other engines to compare with: benchmarks/peers/README.md.
peers: .venv/installed $(MODEL)/config.json
	benchmarks/peers/install.sh

CPP_FILES = $(shell find csrc tests benchmarks examples -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

# C++ names, by .clang-tidy. Clang finds omp.h where GCC has it.
names: .venv/installed $(DOCTEST)
	$(CMAKE_TESTS) -B build/cpp -DBATCHLLM_WERROR=ON > build/cpp.log
	find csrc -name '*.cpp' -not -path 'csrc/bindings/*' -not -path 'csrc/attention/cuda/attention.cpp' | \
	  xargs -P $$(nproc) -n 2 $(BIN)/clang-tidy -p build/cpp --quiet --extra-arg=-idirafter$$($(CXX) -print-file-name=include)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf .venv build out dist *.egg-info
