# make demo    install, then run pipelines/digits.yaml
# make test    install, then run all that CI runs
# make quick   lint and fast tests: the loop while developing
#
# make demo PYTHON=python3.12 TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
# What pyright checks the TensorRT 10 path against. In a folder of their own, because Python would take them for
# TensorRT itself; that cannot be installed everywhere.
STUBS := $(VENV)/stubs
STUBBED := tensorrt-stubs==10.13.0.35.1
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
# Debian packages that tests need, each with a path that only it brings.
DEBIAN := dataset-fashion-mnist:/usr/share/datasets/fashion-mnist \
          chromium:/usr/bin/chromium \
          chromium-driver:/usr/bin/chromedriver
MISSING = $(strip $(foreach one,$(DEBIAN),$(if $(wildcard $(lastword $(subst :, ,$(one)))),,$(firstword $(subst :, ,$(one))))))

.PHONY: demo test quick install dev stubs debian lint types layers docker-lint clean

demo: $(RUNTIME)
	$(BIN)/compress run pipelines/digits.yaml

test: debian $(DEV) lint types layers docker-lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

quick: $(DEV) lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu"

install: $(RUNTIME)

dev: $(DEV)

stubs: $(STUBS)/tensorrt/__init__.pyi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("compress needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that TORCH_INDEX chooses its build and every other package keeps its usual index.
$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -qq $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -qq -c constraints.txt -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) install -qq -c constraints.txt -e '.[dev]'
	@touch $@

$(STUBS)/tensorrt/__init__.pyi: | $(BIN)/python
	$(PIP) install -qq --no-deps --target $(STUBS) $(STUBBED)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) stubs
	$(BIN)/pyright

layers: $(DEV)
	$(BIN)/lint-imports

docker-lint: $(DEV)
	$(BIN)/hadolint docker/Dockerfile.cpu docker/Dockerfile.gpu

# Only what is missing. Tests that need a package skip, with the reason, where it is absent.
debian:
	@if [ -z '$(MISSING)' ]; then :; \
	elif ! command -v apt-get >/dev/null; then echo 'debian: skipped, no apt-get here: $(MISSING)'; \
	elif [ "$$(id -u)" != 0 ]; then echo 'debian: skipped, not root; sudo apt-get install $(MISSING)'; \
	elif apt-get update -qq && apt-get install -y -qq --no-install-recommends $(MISSING) >/dev/null; \
	then echo 'debian: installed $(MISSING)'; \
	else echo 'debian: skipped, apt-get could not fetch $(MISSING)'; fi

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
