# Everything is installed into .venv from the pins in requirements/; nothing outside this folder is touched.
# A stamp file remembers what is installed, so that set-up is skipped while the pins stand.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO ?= demo
WORKERS ?= 2

.PHONY: help
help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: $(STAMPS)/demo  ## write a small session with known truth, analyse it, name the summary page
	@$(BIN)/python -m atomdiffuser demo "$(DEMO)"

.PHONY: test
test: $(STAMPS)/test $(STAMPS)/demo $(STAMPS)/docs $(STAMPS)/citation  ## run every test
	@# threads of workers that outnumber the cores wait for each other
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMPS)/lint  ## check style of Python and rules, and types of the public interface
	@$(BIN)/ruff check .
	@$(BIN)/snakefmt --check Snakefile workflow
	@$(BIN)/mypy

.PHONY: benchmark
benchmark: $(STAMPS)/demo  ## measure accuracy and speed against known truth
	@$(BIN)/python -m benchmarks $(BENCHMARK_ARGS)

.PHONY: benchmark-fuzz
benchmark-fuzz: $(STAMPS)/demo  ## read 10,000 damaged files of each raw format (FUZZ_FILES=…; an hour)
	@FUZZ_WORKERS=$${FUZZ_WORKERS:-$(WORKERS)} $(BIN)/python -m benchmarks fuzz

.PHONY: benchmark-drift
benchmark-drift: $(STAMPS)/base $(STAMPS)/peers  ## compare drift of pairs with other registration tools
	@$(BIN)/python -m atomdiffuser evaluate drift artefacts/benchmarks/drift

.PHONY: docs figures picture
docs: $(STAMPS)/docs  ## build the documentation into artefacts/site, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open file://$(CURDIR)/artefacts/site/index.html"

figures: $(STAMPS)/docs  ## draw the figures of docs/concepts again
	@$(BIN)/python docs/figures.py

picture: $(STAMPS)/demo $(STAMPS)/test  ## take the picture in the README again, from the demo's report (needs Chromium)
	@$(BIN)/python -m atomdiffuser demo "$(DEMO)"
	@$(BIN)/python docs/picture.py "$(DEMO)/session/results/LLZO_mass_loss/report.html"

.PHONY: benchmark-kill
benchmark-kill: $(STAMPS)/demo  ## kill every stage before each of its 3,500 file operations (hours; KILL_POINTS=40 of a stage)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks kill

.PHONY: benchmark-scale
benchmark-scale: $(STAMPS)/demo  ## measure speed and memory of big sessions (SCALE_PARTS=startup,convert,reading,pairs,series,storage,session)
	@$(BIN)/python -m benchmarks scale

.PHONY: coverage
coverage: $(STAMPS)/test $(STAMPS)/demo $(STAMPS)/docs $(STAMPS)/citation $(STAMPS)/quality  ## lines that the tests run; fails under 90 %
	@rm -rf .coverage
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term $(PYTEST_ARGS)

.PHONY: mutation
mutation: $(STAMPS)/test $(STAMPS)/quality  ## break geometry, trajectory and kinetics on purpose: do tests fail?
	@OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mutmut run --max-children $(WORKERS)
	@$(BIN)/python -m benchmarks.mutants

.PHONY: audit
audit: $(STAMPS)/quality  ## look the pinned versions up among known vulnerabilities (asks pypi.org or osv.dev)
	@sed 's/+[a-z0-9.]*$$//' requirements/lock.txt > $(VENV)/audited.txt
	@$(BIN)/pip-audit --no-deps --disable-pip --progress-spinner off -r $(VENV)/audited.txt $(AUDIT_ARGS)

.PHONY: audit-offline
audit-offline: $(STAMPS)/base  ## compare the pinned versions with requirements/advisories.csv, without a network
	@$(BIN)/python requirements/offline_audit.py

.PHONY: wheel
wheel: $(STAMPS)/base  ## build the wheel, with weights and workflow inside, into dist/
	@$(PIP) wheel --no-deps --no-build-isolation -w dist .

.PHONY: faults
faults: $(STAMPS)/base  ## write the fault table of docs/reliability.md from the tests
	@$(BIN)/python tests/fault_table.py

.PHONY: schema
schema: $(STAMPS)/base  ## write config/config.yaml and its schema from atomdiffuser/config.py
	@$(BIN)/python -m atomdiffuser.workflow.config_file

.PHONY: lock
lock: setup-all $(STAMPS)/peers  ## pin what is installed in .venv
	@$(BIN)/python requirements/lock.py

.PHONY: setup setup-all
setup: $(STAMPS)/base  ## install what the workflow needs
setup-all: $(STAMPS)/demo $(STAMPS)/docs $(STAMPS)/test $(STAMPS)/lint  ## install all extras too

# cffconvert wants an older jsonschema than the workflow, so it lives in a folder of its own.
$(STAMPS)/citation: requirements/citation.txt $(STAMPS)/base
	@rm -rf $(VENV)/cffconvert
	@$(PIP) install --target $(VENV)/cffconvert -r $<
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "AtomDiffuser needs Python 3.11 or newer; found none. Set PYTHON=/path/to/python3."; exit 1; }
	@echo "Setting up $(VENV) (once; some minutes)"
	@"$(PYTHON)" -m venv $(VENV)

$(STAMPS)/base: requirements/lock.txt pyproject.toml | $(BIN)/python
	@$(PIP) install -r requirements/lock.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo $(STAMPS)/docs $(STAMPS)/peers $(STAMPS)/quality $(STAMPS)/test $(STAMPS)/lint: $(STAMPS)/%: requirements/%.txt $(STAMPS)/base
	@$(PIP) install -r $<
	@mkdir -p $(STAMPS) && touch $@
