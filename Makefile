# Two commands for a stranger: make demo, make test. PYTHON: 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
OURS := models search latency service client benchmarks tests

.PHONY: demo test test-slow check install format benchmark

demo: install
	$(BIN)/python -m benchmarks.demo

test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff format --check $(OURS)
	$(BIN)/ruff check $(OURS)
	$(BIN)/mypy

format: install
	$(BIN)/ruff format $(OURS)
	$(BIN)/ruff check --fix $(OURS)

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml client/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable client --editable .
	touch $@
