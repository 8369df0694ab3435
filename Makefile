# One command from an empty machine: each target sets up .venv by itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest -q -n 2 --dist worksteal

.PHONY: install demo test test-fast test-slow lint fuzz bench bench-plot growth growth-page clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/mesaprobe analyze examples/demo --out reports/demo

test: lint
	$(PYTEST)

test-fast: lint
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: install
	PYTHONPATH=tests $(BIN)/python -m fuzzing --count 10000

bench: install
	$(BIN)/python -m benchmarks $(ONLY)

bench-plot: install
	$(BIN)/python -m benchmarks.plot

growth: install
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.growth --page

growth-page: install
	$(BIN)/python -m benchmarks.growth --page

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
