# Each target takes a fresh clone to its result: it makes .venv, installs with constraints.txt, builds, runs.
# Paths are relative and quoted: the clone's own may hold spaces, quotes and dollar signs.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BENCH_ARGS ?= --sched 1024,256,128
# pypi-all: with the CUDA compiler from PyPI's packages instead of the system's
WHEEL_CUDA ?= all
# As modules: a script in bin/ names its Python by an absolute path, which a copied environment has from the original.
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PFT_BENCH := $(PY) -m pft_bench
ifneq ($(words $(VENV)),1)
$(error VENV must be a folder without spaces in its path, got '$(VENV)')
endif
# Two set-ups of one environment at once (make -j bench test) follow each other, where there is flock.
# Not where make only shows what it would do: the environment need not be there.
ONE_BY_ONE := $(if $(findstring n,$(firstword -$(MAKEFLAGS))),,$(if $(shell command -v flock),flock $(VENV)/pyvenv.cfg))
# What goes on here is the environment's: no other packages, and pip installs into it and nowhere else.
# Python keeps the bytecode of what it imports, since pip writes none below.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_TARGET PIP_PREFIX PIP_ROOT PIP_DRY_RUN
export PIP_USER := 0

NATIVE := $(shell find kernels bindings -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \
	-o -name CMakeLists.txt -o -name '*.cmake' 2>/dev/null)
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)

.PHONY: docs docs-links counters counters-gates counters-sass report-screenshot figures quality small-model bench test lint sanitize microbench machine-peaks wheel kernel-report gpu-test clean help

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

bench: $(VENV)/.bench ## set up, then check and measure the default schedule inside PFT
	$(PFT_BENCH) run $(BENCH_ARGS)

# Workers for the tests that may run side by side; those that read a clock or a peak of memory follow by themselves.
TEST_WORKERS ?= 2
test: $(VENV)/.test ## set up, then all tests
	@# the second part runs, and tells, whatever came of the first
	PFT_SET_UP=test $(PY) -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not alone"; first=$$?; \
	$(PY) -m pytest -m alone && exit $$first

lint: $(VENV)/.dev ## ruff, mypy, clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@# mypy sees the package as a wheel installs it: reference/ and kernels/triton/ inside pft_bench/
	@rm -rf build/mypy && mkdir -p build/mypy/pft_bench/kernels
	@cp -as "$$PWD/pft_bench" build/mypy/ && cp -as "$$PWD/reference" build/mypy/pft_bench/
	@cp -as "$$PWD/kernels/triton" build/mypy/pft_bench/kernels/
	python="$$($(PY) -c 'import sys; print(sys.executable)')" && config="$$PWD/pyproject.toml" && cd build/mypy && \
		"$$python" -m mypy -p pft_bench --config-file "$$config"
	$(PY) -c 'import sys, clang_format; sys.exit(clang_format.clang_format())' --dry-run --Werror \
		$(filter-out %/CMakeLists.txt %.cmake,$(NATIVE))

docs: $(VENV)/.dev ## the site: guides, Python reference, commands; build/docs/index.html; a warning is an error
	$(PY) -m sphinx -q -W --keep-going -c docs -b html . build/docs

docs-links: $(VENV)/.dev ## follow the links of the documentation to other sites (needs the network)
	$(PY) -m sphinx -q -c docs -b linkcheck . build/docs-links

sanitize: $(VENV)/.test ## the C++ under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PY) tests/sanitized.py

microbench: $(VENV)/.test ## pytest-benchmark over the ops
	$(PY) -m pytest tests/benchmarks --benchmark-only

machine-peaks: $(VENV)/.bench ## FMA rate and cache bandwidths, the floors of the CPU kernels; PEAKS_OUT=folder keeps them
	$(PY) -m pft_bench.maintain.machine_peaks $(if $(PEAKS_OUT),--out "$(PEAKS_OUT)")

ITERATIONS ?= 3000
SMALL_MODEL_OUT ?= runs/small_x2
small-model: $(VENV)/.bench ## train the shipped small model again: photographs from PyPI, three thousand steps on the CPU (ITERATIONS=)
	$(PY) -m pft_bench.maintain.sample_photographs build/photographs
	$(PFT_BENCH) train --data build/photographs/train --out "$(SMALL_MODEL_OUT)" --init interpolation \
		--iterations $(ITERATIONS) --batch 4 --patch 32 --lr 1e-3 --save-every 100 \
		$$(test ! -f "$(SMALL_MODEL_OUT)/checkpoint.pt" || echo --resume)

# The recorded evaluation that `figures` draws; `quality` makes a new one.
QUALITY_RUN ?= $(lastword $(sort $(wildcard reports/data/*_small_x2_held_out)))
figures: $(VENV)/.bench ## the README's figures drawn again: what a pixel looks at, quality against latency, the attention mechanisms
	$(PY) -m pft_bench.maintain.sample_photographs build/photographs
	$(PFT_BENCH) attention build/photographs/held_out/chelsea.png --query 125,170 --weights small_x2 \
		--out reports/attention.png --overwrite
	$(PY) -m pft_bench.report.quality "$(QUALITY_RUN)"
	$(PY) -m pft_bench.maintain.systems_page --figure

quality: $(VENV)/.bench ## evaluate and measure the shipped model anew with five schedules, on the photographs held out of training
	$(PY) -m pft_bench.maintain.sample_photographs build/photographs
	$(PFT_BENCH) evaluate --weights small_x2 --data build/photographs/held_out --sched 256,256,256 --sched 256,128,64 \
		--sched 256,64,16 --sched 256,32,8 --sched 256,16,4 \
		--out runs/$$(date +%Y-%m-%d-%H%M%S)_small_x2_held_out

systems-report: systems ## the compared systems: reports/systems.md and its figure, from the latest records
	$(PY) -m pft_bench.maintain.systems_page

.PHONY: systems systems-report
systems: $(VENV)/.bench ## spandrel for `pft-bench systems`, without touching torch: what it needs is the extra "systems", itself it comes alone
	$(PIP) install -q -c constraints.txt $(PIP_ARGS) 'einops>=0.7' 'typing_extensions>=4'
	$(PIP) install -q --no-deps $(PIP_ARGS) 'spandrel>=0.4,<0.5'

wheel: $(VENV)/.test ## the release wheel: CUDA for sm_80 to sm_120 and PTX in one binary (needs nvcc)
	PFT_CUDA=$(WHEEL_CUDA) $(PIP) wheel -q --no-deps --no-build-isolation -w dist \
		--config-settings=cmake.define.PFT_EMULATOR=OFF --config-settings=build-dir=build/wheel .

kernel-report: wheel ## registers, spills, shared memory, occupancy and instructions of every CUDA and Triton kernel
	$(PY) -m pft_bench.insight.kernel_table "$$(ls -t dist/pft_bench-*.whl | head -1)" --out reports/kernel_table.md

counters: $(VENV)/.test ## counts of the CUDA kernels and the times predicted from them: reports/counters.md (six minutes on two cores)
	$(PY) -m pft_bench.insight.counters.report

counters-gates: $(VENV)/.test ## only the counts that tests hold the kernels to, after a change that is meant
	$(PY) -m pft_bench.insight.counters.report --gates

counters-sass: $(VENV)/.test ## the instructions behind the prediction, after any change of a kernel (needs nvcc; ten minutes)
	$(PY) -m pft_bench.insight.counters.sass

gpu-test: has-gpu $(VENV)/.test ## on a machine with a GPU: correctness, compute-sanitizer, determinism, the measured ladder
	$(PY) kernels/cuda/gpu_test.py

.PHONY: has-gpu
has-gpu:
	@nvidia-smi -L 2>/dev/null | grep -q '^GPU' || { echo "gpu-test needs an NVIDIA GPU: nvidia-smi lists none here."; \
		echo "Without one: $(PY) kernels/cuda/gpu_test.py --rehearse goes through its steps in the emulator."; exit 2; }

REPORT_RUN ?= $(lastword $(sort $(wildcard reports/data/*_light_x4_64x64)))
CHROMIUM ?= chromium
report-screenshot: $(VENV)/.bench ## the picture of the HTML report in docs/measuring.md, from REPORT_RUN (needs Chromium)
	rm -rf build/report && mkdir -p build/report
	cp "$(REPORT_RUN)/records.jsonl" "$(REPORT_RUN)/environment.json" build/report/
	$(PFT_BENCH) report build/report
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$$PWD/build/report/profile" \
		--window-size=1280,1560 --screenshot="$$PWD/reports/report.png" \
		"$$($(PY) -c 'import pathlib; print(pathlib.Path("build/report/report.html").resolve().as_uri())')"

clean: ## remove everything that was built or installed
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# -- set-up ------------------------------------------------------------------------------------------------------------

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pft_bench needs Python >= 3.11, got $$($(PYTHON) --version); set PYTHON=python3.x"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "pft_bench needs a C++17 compiler (set CXX)"; exit 1; }
	@echo "== making $(VENV)"
	@# an environment that is there has lost its Python: nothing in it can run
	@$(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV) || { rm -f $@; exit 1; }

.PHONY: own-environment
own-environment: $(VENV)/bin/python
	@$(PY) -I .ci/own_environment.py

# A build finds its tools in the environment. pip's own way, tools in a new folder for each build, would make every file
# look changed; so a build compiles what has changed since the last. setuptools: for a dependency without a wheel.
BUILD_TOOLS := scikit-build-core pybind11 cmake ninja setuptools
# Not compiled to bytecode: that would be half of the installation, and Python does it for what is imported.
INSTALL = $(PIP) install -q --no-compile -c constraints.txt $(PIP_ARGS)
# The kernels are built while the packages are installed. What they are built with comes first: pip twice at once must
# not install the same package.
AT_ONCE = --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j2)

$(VENV)/.bench: $(SOURCES) | own-environment
	@echo "== installing PyTorch and building the kernels (one to two minutes the first time)"
	@$(ONE_BY_ONE) $(MAKE) $(AT_ONCE) packages-run kernels-run
	@touch $@

$(VENV)/.test $(VENV)/.dev: $(SOURCES) | own-environment
	@echo "== installing PyTorch and tools, building the kernels and their emulator (three to five minutes the first time)"
	@$(ONE_BY_ONE) $(MAKE) $(AT_ONCE) packages-$(patsubst .%,%,$(notdir $@)) kernels-emulated
	@# dev has all of test in it
	@touch $@ $(VENV)/.bench $(if $(filter %/.dev,$@),$(VENV)/.test)

.PHONY: build-tools packages-run packages-test packages-dev kernels-run kernels-emulated
build-tools:
	@$(INSTALL) $(BUILD_TOOLS)

packages-run packages-test packages-dev: build-tools
	@needs="$$($(PY) -I .ci/requirements.py $(filter-out run,$(patsubst packages-%,%,$@)))" && \
		printf '%s\n' "$$needs" | $(INSTALL) -r /dev/stdin

# Said in either case: the build folder remembers what it was told last.
kernels-run kernels-emulated: build-tools
	@$(INSTALL) --no-build-isolation --no-deps -e . \
		--config-settings=cmake.define.PFT_EMULATOR=$(if $(filter kernels-run,$@),OFF,ON)
