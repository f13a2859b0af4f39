# Everything that is done with this project, one target each. `make demo` and `make test` set up what they need:
# a virtual environment in .venv with torch, the extras and the compiled package.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := torch==2.13.0
TOOLS := 'ruff==0.17.*' 'mypy==2.*' 'clang-format==19.*' types-protobuf 'cmake>=3.20' ninja nanobind
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name CMakeLists.txt)

.PHONY: demo test check format bench bench-short bench-growth bench-page layers-page clean sanitize fuzz

demo: $(VENV)/built
	$(BIN)/python examples/digits.py --directory run

# Torch's own threads would only be in the way of two tests at once.
test: $(VENV)/built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h %.cu,$(SOURCES))
	$(BIN)/cmake -S csrc -B build/strict -G Ninja -DTRACKCKPT_WERROR=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -Wno-dev --log-level=WARNING
	$(BIN)/cmake --build build/strict

format: $(VENV)/tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(filter %.cpp %.h %.cu,$(SOURCES))

# All figures of docs/performance.md, in 20 minutes on a machine that does nothing else; smaller ones in three, to see
# that all works; how cost grows, an hour. BENCH takes further arguments, such as --disk DIR (see --help).

bench: $(VENV)/peers
	$(BIN)/python -m benchmarks run $(BENCH)

bench-short: $(VENV)/peers
	$(BIN)/python -m benchmarks run --short $(BENCH)

bench-growth: $(VENV)/peers
	$(BIN)/python -m benchmarks growth $(BENCH)

# The page and the plots, from what the last runs measured.

bench-page: $(VENV)/peers
	$(BIN)/python -m benchmarks plot build/benchmarks/results.json
	$(BIN)/python -m benchmarks report build/benchmarks/results.json --page docs/performance.md

# The page of Keras's layers, from the rules.

layers-page: $(VENV)/built
	$(BIN)/python -m torch_trackckpt.interop.keras.table docs/from-keras-layers.md

clean:
	rm -rf $(VENV) build run

# The stamps below say which step of the set-up was done; a later run repeats only what has become stale.

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	touch $@

# Keras 2 asks for the package `tensorflow` and is content with the smaller `tensorflow-cpu` of the tests.
$(VENV)/built: $(VENV)/torch pyproject.toml $(SOURCES)
	$(PIP) install --editable '.[test]'
	$(PIP) install --no-deps 'tf_keras==2.21.*'
	touch $@

# The peers must not replace torch by another one.
$(VENV)/peers: $(VENV)/built
	echo '$(TORCH)' > $(VENV)/constraints
	$(PIP) install --constraint $(VENV)/constraints --editable '.[bench]'
	touch $@

$(VENV)/tools: $(VENV)/built
	$(PIP) install $(TOOLS)
	touch $@

# The tests of the core against a build that stops at every error of memory and every undefined behaviour. Python
# starts without its site (-S), which would lead it to the installed package; and from outside of the virtual
# environment, because the processes that tests start have a site. The sanitizers' library has to come
# first in the process, and behind it that of C++, whose exceptions it watches. Every object of Python gets memory of
# its own (PYTHONMALLOC), so that a step over its end shows, and pytest leaves the standard error alone, where they
# report. Python never frees everything: leaks are not looked for. Tests of memory's size are left out.

SANITIZED := build/sanitize

sanitize: $(VENV)/tools
	$(BIN)/cmake -S csrc -B $(SANITIZED)/native -G Ninja -DCMAKE_BUILD_TYPE=Debug -DTRACKCKPT_SANITIZE=ON \
		-DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -Wno-dev --log-level=WARNING
	$(BIN)/cmake --build $(SANITIZED)/native
	rm -rf $(SANITIZED)/package && mkdir $(SANITIZED)/package && cp -r torch_trackckpt $(SANITIZED)/package
	rm -f $(SANITIZED)/package/torch_trackckpt/*.so && cp $(SANITIZED)/native/_native*.so $(SANITIZED)/package/torch_trackckpt
	PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	PYTHONPATH=$(abspath $(SANITIZED)/package):$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		$$(readlink -f $(BIN)/python) -S $(BIN)/pytest -p no:cacheprovider --capture=sys -m 'not memory' \
		tests/native tests/graph tests/bundle $(wildcard tests/storage/test_remote*.py)

# The core against inputs that libFuzzer makes up, each target for FUZZ_SECONDS, JOBS of them at once. Needs clang.
# What a target has learned stays in build/fuzz/corpus for the next run; findings are in build/fuzz/findings, and
# `build/fuzz/native/fuzz/fuzz_TARGET FILE` repeats one. No single allocation may exceed 64 MiB, far above what the
# largest input (64 KiB) can stand for.

FUZZ_SECONDS ?= 1800
JOBS ?= 1
FUZZ := build/fuzz
FUZZ_CLANG ?= clang++

fuzz: $(VENV)/tools
	$(BIN)/cmake -S csrc -B $(FUZZ)/native -G Ninja -DCMAKE_BUILD_TYPE=Debug -DTRACKCKPT_FUZZ=ON \
		-DCMAKE_CXX_COMPILER=$(FUZZ_CLANG) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -Wno-dev --log-level=WARNING
	$(BIN)/cmake --build $(FUZZ)/native
	$(BIN)/python csrc/fuzz/make_seeds.py $(FUZZ)/seeds
	$(BIN)/python csrc/fuzz/run.py $(FUZZ) --seconds $(FUZZ_SECONDS) --jobs $(JOBS)
