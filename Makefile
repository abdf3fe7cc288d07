# `make demo` and `make test` need Python 3.11 or newer (with its venv module) and nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-all check bench clean

help:
	@echo "make demo      restore a photograph, read handwritten digits, show what each network costs"
	@echo "make test      check (format, lint, types), then the tests"
	@echo "make test-all  the same with the long tests"
	@echo "make check     format, lint and types alone"
	@echo "make bench     time against the other runtimes; NETS=folder of exported networks for the full tables"

# One environment for everything. A stamp records which extras are in it, so that a second run installs nothing; it is
# older than pyproject.toml as soon as that changes.
$(VENV)/.stamp-pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml | $(VENV)/.stamp-pip
	@echo "installing convwright with the runtime that the demonstration compares with, onnxruntime"
	@$(PIP) install -e ".[demo]"
	@touch $@

$(VENV)/.stamp-test: pyproject.toml | $(VENV)/.stamp-pip
	@echo "installing convwright with the test and dev extras (pytest, torch 2.13.0, onnxruntime, scipy, ruff, mypy, ...)"
	@$(PIP) install -e ".[test,dev]"
	@touch $@

$(VENV)/.stamp-bench: pyproject.toml | $(VENV)/.stamp-pip
	@echo "installing convwright with the bench extras (onnxruntime, openvino, ncnn, MNN, torch 2.13.0, ...)"
	@$(PIP) install -e ".[bench]"
	@touch $@

demo: $(VENV)/.stamp-demo
	@$(BIN)/python examples/demo.py

check: $(VENV)/.stamp-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m ""

# NETS is a folder of networks written by bench/export_networks.py; without it, the examples' own networks are timed.
NETS ?=
bench: $(VENV)/.stamp-bench
	@if [ -n "$(NETS)" ]; then $(BIN)/python bench/networks.py "$(NETS)" && $(BIN)/python bench/layers.py "$(NETS)"; \
	else for net in examples/*/*.onnx; do $(BIN)/convwright bench "$$net" --against onnxruntime,openvino,torch,ncnn || exit; done; fi

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
