# Two commands do everything on a machine that has Python 3.11 or newer: `make demo` and `make test`.
# Both make their own environments first: .tools holds uv, .venv the project with what uv.lock pins.

PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .tools/bin/uv
RUN := .venv/bin/
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv

.PHONY: demo test check lint types imports docs golden bench corpus rig engine docker clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    plan, start and question a real model on this machine"
	@echo "make test    the tests that need nothing but Python"
	@echo "make check   lint, types, import order"
	@echo "make rig | engine | docker | corpus    heavier suites, see CONTRIBUTING.md"
	@echo "make docs | bench | golden | clean"

.tools/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version) was found; try: make PYTHON=python3.12"; exit 2; }
	@echo "setting up uv in .tools"
	@$(PYTHON) -m venv .tools && .tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/ready: .tools/ready pyproject.toml uv.lock
	@echo "setting up .venv from uv.lock"
	@$(UV) sync --frozen --all-extras --quiet --compile-bytecode --python $(PYTHON)
	@$(RUN)python -m compileall -q src
	@touch $@

demo: .venv/ready
	@PATH="$(CURDIR)/.venv/bin:$$PATH" sh examples/demo.sh

test: .venv/ready
	@$(RUN)python -m pytest -q -n 2

check: lint types imports

lint: .venv/ready
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .

types: .venv/ready
	@$(RUN)mypy

imports: .venv/ready
	@$(RUN)lint-imports | tail -5

docs: .venv/ready
	@$(RUN)python tools/reference.py
	@$(RUN)mkdocs build --strict --quiet --site-dir site

golden: .venv/ready
	@$(RUN)python -m pytest -q tests/render --update-golden

corpus rig engine docker: .venv/ready
	@$(RUN)python -m pytest -q -m $@

bench: .venv/ready
	@$(RUN)python bench/run.py

clean:
	rm -rf .venv .tools .demo dist site build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
