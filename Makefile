# Everything that is done with this project, one target each. `make demo` and `make test` set up what they need:
# a virtual environment in .venv with torch, the extras and the compiled package.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := torch==2.13.0
TOOLS := 'ruff==0.17.*' 'mypy==2.*' 'clang-format==19.*' types-protobuf 'cmake>=3.20' ninja nanobind
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt)

.PHONY: demo test check format benchmark clean

demo: $(VENV)/built
	$(BIN)/python examples/digits.py --directory run

test: $(VENV)/built
	$(BIN)/python -m pytest

check: $(VENV)/tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(SOURCES))
	$(BIN)/cmake -S csrc -B build/strict -G Ninja -DTRACKCKPT_WERROR=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -Wno-dev --log-level=WARNING
	$(BIN)/cmake --build build/strict

format: $(VENV)/tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(filter %.cpp %.h,$(SOURCES))

benchmark: $(VENV)/built
	$(BIN)/python benchmarks/save_restore.py

clean:
	rm -rf $(VENV) build run

# The stamps below say which step of the set-up was done; a later run repeats only what has become stale.

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	touch $@

$(VENV)/built: $(VENV)/torch pyproject.toml $(SOURCES)
	$(PIP) install --editable '.[test]'
	touch $@

$(VENV)/tools: $(VENV)/built
	$(PIP) install $(TOOLS)
	touch $@
