# Two commands matter: `make demo` trains Truck Mate on this machine, `make test` passes the tests.
# Both set themselves up; nothing but Python 3.11+ and make is needed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# Installing brings the admin site's scripts from npm, so a change of their lock file installs anew.
SITE_FILES := hatch_build.py $(wildcard frontend/*)

.PHONY: help demo demo-fresh test test-slow test-security-postgres lint format security-matrix fuzz audit bench docs clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bithaul needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: pyproject.toml constraints.txt $(SITE_FILES) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.test-ready: $(VENV)/.run-ready
	$(PIP) install -q -c constraints.txt -e '.[test,lint]'
	@touch $@

demo: $(VENV)/.run-ready ## Train Truck Mate with two workers and ask it something (about eleven minutes)
	$(BIN)/bithaul up --dir runs/demo --preset small --workers 2 \
		--budget-tokens 12000000 --budget-minutes 10.4 --json

demo-fresh: ## Forget the demo's run and train again
	rm -rf runs/demo
	$(MAKE) demo

test: $(VENV)/.test-ready ## Run the tests (all but those marked slow)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: $(VENV)/.test-ready ## Run the slow tests: convergence, the demo itself, real-size transfers
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.test-ready ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test-ready ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

test-security-postgres: $(VENV)/.test-ready ## Run the security tests with PostgreSQL instead of SQLite
	BITHAUL_TEST_DATABASE=postgresql $(BIN)/python -m pytest tests/security -m "not slow" $(PYTEST_ARGS)

security-matrix: $(VENV)/.run-ready ## Write docs/security-matrix.md and docs/openid-plan.md from the tests
	$(BIN)/python tests/security/matrix.py
	$(BIN)/python tests/security/plan.py

fuzz: $(VENV)/.test-ready ## Fuzz with atheris (Linux): make fuzz SECONDS=300
	$(PIP) install -q atheris
	for target in codecs headers importer jwt signed; do \
		$(BIN)/python tests/security/fuzz.py $$target $(or $(SECONDS),60) || exit 1; done

audit: $(VENV)/.test-ready ## Audit constraints.txt against osv.dev's newest list, or ADVISORIES=all.zip
	$(BIN)/python tests/security/audit.py $(or $(ADVISORIES),--fetch)

bench: $(VENV)/.run-ready ## Run every benchmark; writes benchmarks/results/*.json and docs/benchmarks.md
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run_all.py $(BENCH_ARGS)

docs: $(VENV)/.run-ready ## Build the documentation into site/
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
