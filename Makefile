# `make help` lists the verbs. Needs Python 3.11 to 3.13, make and git; everything else goes into .venv.
SHELL := /bin/bash
ARGS ?=
PROCESSES ?= 3
RUN := .venv/.ready-to-run
TEST := .venv/.ready-to-test
CHECK := .venv/.ready-to-check

QUICK := tests/unit tests/architecture tests/integration/test_db_session.py tests/integration/test_identity_members.py \
	tests/integration/test_api_routes.py tests/isolation/test_matrix_sql.py tests/isolation/test_isolation_regressions.py \
	tests/numerics/test_engine_overflow.py

unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo up test quick check prove-wall bench schema docs

help: ## What there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  Arguments go in ARGS: make demo ARGS="--model-type flux", make test ARGS="tests/unit -k layout"'
	@echo '  make test runs in three processes; PROCESSES=0 is one, as pytest alone'

setup: $(CHECK) ## Make .venv and install everything into it (once)

demo: $(RUN) ## Two brands, from uploaded to generated images, on this machine: see demo-output/
	.venv/bin/onbrand demo $(ARGS)

up: $(RUN) ## Run the platform here, until Ctrl-C
	.venv/bin/onbrand up $(ARGS)

test: $(TEST) ## All tests, against a real PostgreSQL and a real object store
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(PROCESSES) --no-loadscope-reorder $(ARGS)

quick: $(TEST) ## Unit and architecture tests without the slow ones, and a few of the rest: under three minutes
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --no-loadscope-reorder -m "not slow" $(QUICK) $(ARGS)

check: $(CHECK) ## Style, types and layers
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python .ci/check-packages

prove-wall: $(TEST) ## Break the wall line by line, and see the tests notice each (ARGS: --only ID, --at-once N)
	.venv/bin/python -m tests.isolation.faults $(ARGS)

bench: $(RUN) ## Measure the engine with many brands in one batch, and what adapters bring (ARGS: --family ...)
	.venv/bin/python -m benchmarks.engine $(ARGS)
	.venv/bin/python -m benchmarks.adapters $(ARGS)

schema: $(RUN) ## Write platform/onbrand/db/schema.sql anew from the migrations
	.venv/bin/python .ci/write-schema

docs: $(RUN) ## Write the table of settings in docs/operations.md anew from config.py
	.venv/bin/python .ci/write-settings

$(RUN): pyproject.toml .ci/setup
	.ci/setup $@ server

$(TEST): pyproject.toml .ci/setup
	.ci/setup $@ server,test
	@touch $(RUN)

$(CHECK): pyproject.toml .ci/setup
	.ci/setup $@ server,test,check
	@touch $(RUN) $(TEST)
