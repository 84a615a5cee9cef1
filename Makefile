# Everything happens in .venv, .venv-matrix, .stores, .airflow and temporary folders. Only the end-to-end tests need
# something of the system: Chromium, which is installed where it is missing, apt-get is there and root runs this.
PYTHON ?= python3
BIN := .venv/bin

MEMBERS ?=
JOBS ?= 2
SMOKE := tests/e2e/test_0_smoke.py

.PHONY: demo airflow sandbox reset test test-unit test-smoke test-e2e test-stores test-matrix bench \
  lint format types measures wheel constraints chromium clean

demo: .venv/ready        ## archive a day of calls and show what came of it
	@$(BIN)/python -m dev.demo

airflow: .venv/ready     ## an Airflow of its own with its UI, and a run that archives and waits, until Ctrl-C
	@$(BIN)/python -m dev.standalone

sandbox: .venv/ready     ## the sandbox of the API alone, until Ctrl-C; PORT, LIMIT and PERIOD are its to choose
	@$(BIN)/python -m airflow_provider_amplemarket.sandbox

reset:                   ## let demo and airflow begin anew: remove what they have left, but for real recordings
	@$(PYTHON) -m dev.reset

test:                    ## what to run before each commit: the unit tests, then the smoke test; at most six minutes
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-smoke

test-unit: .venv/ready   ## all but the whole Airflow, four at a time as most of them wait; with CI=true, branch coverage
	@AMPLEMARKET_TEST_STORES=local,moto $(BIN)/python -m pytest --ignore=tests/e2e \
	  --numprocesses=4 --dist=worksteal $(if $(CI),--cov --cov-report=term)

test-smoke: .venv/ready  ## a whole Airflow on PostgreSQL that waits for the quota once and loses a task's process
	@$(BIN)/python -m pytest $(SMOKE)

test-e2e: .venv/ready chromium  ## a whole Airflow, its failures, and its UI in Chromium; takes a quarter of an hour
	@$(BIN)/python -m pytest tests/e2e --ignore=$(SMOKE)

test-matrix: .venv/ready  ## the wheel with each Airflow and Python, or with MEMBERS=ends, MEMBERS="airflow-3.1-py3.12 …"
	@nice $(BIN)/python -m dev.matrix --jobs $(JOBS) $(MEMBERS)

test-stores: .stores/ready  ## the archive on rclone's S3, Azure and Google Cloud Storage, each an emulator
	@AMPLEMARKET_TEST_STORES=rclone,azurite,gcs nice .stores/venv/bin/python -m pytest \
	  -k "rclone or azurite or gcs" tests/archive tests/operators

bench: .venv/ready       ## measured side by side with the alternatives, into docs/benchmarks.md; takes ten minutes
	@$(BIN)/python -m benchmarks

lint: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/ready
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: .venv/ready
	@$(BIN)/mypy

measures: .venv/ready    ## how dense the code is
	@$(BIN)/python -m dev.measures

wheel: .venv/ready
	@$(BIN)/python -m hatchling build -t wheel

# The versions that the project is tested with, resolved anew.
constraints: .venv/ready
	@$(BIN)/uv pip compile -q --upgrade --universal --extra s3 --group dev --no-annotate --no-header \
	  --python-version 3.11 -o constraints/newest.txt pyproject.toml && sed -i 's/ *;.*//' constraints/newest.txt

clean:
	@rm -rf .venv .venv-matrix .stores .airflow .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage dist

.venv/ready: pyproject.toml constraints/newest.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@echo "Setting up .venv; this takes a minute or two the first time …"
	@$(PYTHON) -m venv .venv
	@($(BIN)/python -m pip install -q -c constraints/newest.txt 'pip>=25.1' \
	  && $(BIN)/python -m pip install -q -c constraints/newest.txt --group dev -e '.[s3]') > .venv/install.log 2>&1 \
	  || { cat .venv/install.log; exit 1; }
	@touch $@

# Without it the tests in the browser are skipped.
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "Installing Debian's chromium for the tests in the browser …"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } > /dev/null \
	    || echo "Chromium could not be installed."; \
	fi

# An environment of its own: Google's provider is large and holds other packages back.
.stores/ready: pyproject.toml constraints/stores.txt
	@echo "Setting up .stores; this takes a few minutes the first time …"
	@$(PYTHON) -m venv .stores/venv
	@(nice .stores/venv/bin/pip install -q --only-binary :all: -r constraints/stores.txt \
	  && .stores/venv/bin/pip install -q --no-deps -e .) > .stores/install.log 2>&1 || { cat .stores/install.log; exit 1; }
	@if command -v npm > /dev/null; then \
	  npm install --prefix .stores --silent --no-audit --no-fund --no-package-lock azurite@3.35.0; \
	else echo "There is no npm here, so the tests on Azure are skipped."; fi
	@touch $@
