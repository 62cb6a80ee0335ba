# The two doors: `make demo` shows what the project does, `make test` proves it. Both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests; each takes about 2 GB.
JOBS ?= 2
SETUP := .venv/.installed
DOCS_SETUP := .venv/.docs-installed

# Set it to see which lines the tests run: make test COVERAGE=1
COVERAGE ?=
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

.PHONY: demo demo-classification demo-qa test lint format docs setup wheel clean

demo: demo-classification demo-qa

demo-classification demo-qa: setup
	$(BIN)/pocketbert run $@

test: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in build/docs. A figure in README or RESULTS that differs from the JSON behind it fails here too.
docs: $(DOCS_SETUP)
	$(BIN)/python docs/figures.py --check
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -b html docs build/docs
	@echo "build/docs/index.html"

setup: $(SETUP)

# The site's generator has a step of its own, so that demo and tests do not wait for it. It needs Python 3.11.
$(DOCS_SETUP): $(SETUP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[offline,test,docs]'
	@touch $@

# One pip call with everything pinned: a second one could move torch to a build with gigabytes of CUDA packages.
$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else "Python 3.10 to 3.13 is needed, this is %d.%d; name one with make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[offline,test]'
	@touch $@

# Builds the wheel and tries it in an empty environment; WHEEL_VENV=DIR leaves that environment in DIR.
wheel:
	PYTHON=$(PYTHON) bash .ci/wheel $(WHEEL_VENV)

clean:
	rm -rf .venv runs build *.egg-info
