# Two commands for a stranger: make demo, make test. `make help` lists all. PYTHON: 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
OURS := models search latency service client benchmarks tests examples
SHIPPED := models search latency service client/vitfit
COVERED := $(addprefix --cov=,models search latency service vitfit) --cov-report=term:skip-covered

.PHONY: help install demo check audit format test test-slow docs

help: ## List these commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/installed ## Make .venv with everything in it; the command is then .venv/bin/vitfit.

demo: install ## Compress the digits model, serve it, and say what came out (about 3 minutes).
	$(BIN)/python -m benchmarks.demo

check: install ## Format, lint, types and unsafe calls: what every change must pass.
	$(BIN)/ruff format --check $(OURS)
	$(BIN)/ruff check $(OURS)
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(SHIPPED)

audit: install ## Compare the installed packages with known faults: make audit FILE=advisories.json (OSV).
	$(BIN)/python -m benchmarks.audit $(FILE)

format: install ## Format the code, and mend what the linter can mend.
	$(BIN)/ruff format $(OURS)
	$(BIN)/ruff check --fix $(OURS)

test: install ## The tests that every change must pass (at most 15 minutes on 2 cores), and the share of lines that they run.
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(COVERED)

test-slow: install ## The tests that take longer than a minute each.
	$(BIN)/python -m pytest -m slow

docs: install ## The documentation as a site in build/site; a broken link is an error.
	$(BIN)/mkdocs build --strict --site-dir build/site

.venv/installed: requirements.txt pyproject.toml client/pyproject.toml client/vitfit/VERSION
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable client --editable .
	touch $@
