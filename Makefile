# Everything happens in .venv, .airflow and the tests' own temporary folders.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo airflow sandbox test lint format types wheel constraints clean

demo: .venv/ready        ## archive a day of calls and show what came of it
	@$(BIN)/python -m tools.demo

airflow: .venv/ready     ## the same Airflow with its UI, until Ctrl-C
	@$(BIN)/python -m tools.standalone

sandbox: .venv/ready     ## the sandbox of the API alone, until Ctrl-C
	@$(BIN)/python -m tests.sandbox

test: .venv/ready        ## all tests, with branch coverage
	@$(BIN)/python -m pytest --cov --cov-report=term

lint: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/ready
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: .venv/ready
	@$(BIN)/mypy

wheel: .venv/ready
	@$(BIN)/python -m hatchling build -t wheel

# The versions that the project is tested with, resolved anew.
constraints: .venv/ready
	@$(BIN)/pip install -q uv && $(BIN)/uv pip compile -q --upgrade --extra dev --no-annotate --no-header \
	  --python-version 3.11 -o constraints.txt pyproject.toml

clean:
	@rm -rf .venv .airflow .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage dist

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@echo "Setting up .venv; this takes a minute or two the first time …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]' > .venv/install.log 2>&1 || { cat .venv/install.log; exit 1; }
	@touch $@
