# Everything runs in .venv, which is made on first use, and again when its two inputs change.
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
MADE := .venv/.made
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4

.PHONY: help demo test test-slow check arrows bench bench-bridges bench-diagnose bench-cpt clean

help:
	@echo "make demo           train small donors, build and verify every recipe of recipes/demo"
	@echo "make test           the fast tests"
	@echo "make test-slow      all tests"
	@echo "make check          ruff, mypy and the fast tests: what CI runs"
	@echo "make arrows         which package imports which, as a table"
	@echo "make bench          what we claim about speed, measured"
	@echo "make bench-bridges  what we claim about bridges, measured"
	@echo "make bench-diagnose what we claim about the diagnosis, measured"
	@echo "make bench-cpt      what freezing saves in time and memory, measured beside the forecast"
	@echo "make clean          remove .venv and everything that was built"

$(MADE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hybridize needs Python 3.11 or newer; make PYTHON=python3.12, say")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(MADE)
	$(BIN)/hybridize demo

test: $(MADE)
	$(PYTEST)

test-slow: $(MADE)
	$(PYTEST) -m 'not gpu'

check: $(MADE)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST)

arrows: $(MADE)
	@$(BIN)/python -m tests.support.arrows

bench: $(MADE)
	$(BIN)/python benchmarks/bench_build.py

bench-bridges: $(MADE)
	$(BIN)/python benchmarks/bench_bridges.py

bench-diagnose: $(MADE)
	$(BIN)/python benchmarks/bench_diagnose.py

bench-cpt: $(MADE)
	$(BIN)/python benchmarks/bench_cpt.py

clean:
	rm -rf .venv out build dist hybridize.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
