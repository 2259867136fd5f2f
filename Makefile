# Every target installs what it needs: a fresh machine with Python 3.11+ and make is enough.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

help:  ## say what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.runs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.develops: .venv/.runs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

setup: .venv/.develops  ## install trainrun and what its development needs into .venv

.venv/.benches: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

demo: .venv/.runs  ## train the demo: real digits, offline, under a minute
	$(BIN)/trainrun fit configs/digits.yaml

# One thread a process: threads that wait for one another at every operation are slower than none.
test: .venv/.develops  ## run all tests, as many at once as there are cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not alone" --numprocesses auto --maxprocesses 8 --dist worksteal
	$(BIN)/python -m pytest -q -m alone

check: .venv/.develops  ## lint, types, import directions, fresh schema and reference pages
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/pyrefly check --preset strict trainrun/recipe
	$(BIN)/lint-imports
	$(BIN)/trainrun schema | diff - configs/trainrun.schema.json
	$(BIN)/trainrun schema --partial | diff - recipes/trainrun.schema.json
	$(BIN)/check-jsonschema --schemafile configs/trainrun.schema.json configs/*.yaml
	$(BIN)/check-jsonschema --schemafile recipes/trainrun.schema.json recipes/*.yaml
	$(BIN)/python tools/make_reference.py --check

fix: .venv/.develops  ## mend what the linter can mend, and write schema and reference pages anew
	$(BIN)/ruff check --fix .
	$(BIN)/trainrun schema > configs/trainrun.schema.json
	$(BIN)/trainrun schema --partial > recipes/trainrun.schema.json
	$(BIN)/python tools/make_reference.py

docs: .venv/.develops  ## write the reference pages under docs/reference anew from the parts
	$(BIN)/python tools/make_reference.py

bench: .venv/.benches  ## measure speed, start and memory against peers; DATA=PATH for real pictures
	$(BIN)/python benchmarks/throughput.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/memory.py

.PHONY: help setup demo test check fix docs bench
