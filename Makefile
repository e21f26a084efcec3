# `make help` lists the verbs. Needs Python 3.11 to 3.13, make and git; everything else goes into .venv.
SHELL := /bin/bash
PY := .venv/bin/python
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo up test check bench schema

help: ## What there is to do
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  Arguments go in ARGS, e.g. make demo ARGS="--model-type flux", make test ARGS="tests/unit -k layout"'

setup: .venv/.ready ## Make .venv and install everything into it (once)

demo: .venv/.ready ## Two brands, from pictures to pictures, on this machine: see demo-output/
	.venv/bin/onbrand demo $(ARGS)

up: .venv/.ready ## Run the platform here, until Ctrl-C
	.venv/bin/onbrand up $(ARGS)

test: .venv/.ready ## All tests, against a real PostgreSQL and a real object store
	$(PY) -m pytest $(ARGS)

check: .venv/.ready ## Style, types and floors
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

bench: .venv/.ready ## Measure what a brand's adapter brings it, and what it takes from others
	$(PY) -m benchmarks.adapters $(ARGS)

schema: .venv/.ready ## Write platform/onbrand/db/schema.sql anew from the migrations
	$(PY) -m onbrand.db.schema

.venv/.ready: pyproject.toml .ci/setup
	.ci/setup
