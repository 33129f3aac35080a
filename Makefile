# Every target works from a fresh clone with Python >= 3.11.4, pip and make; the first builds .venv.
PYTHON ?= python3
DATA ?= scenes
VENV := .venv
BIN := $(VENV)/bin
.PHONY: demo test check bench docs clean venv

venv: $(VENV)/.made

# the user's environment: what `pip install pellucid` gives, at pinned versions
$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11, 4) else 'pellucid needs Python 3.11.4 or newer; this is ' + sys.version.split()[0] + '. Set PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# what tests, checks and benchmarks need on top of it
$(VENV)/.dev: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,metrics,data]'
	touch $@

$(VENV)/.docs: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# a network this small is trained faster by one thread than by several that wait for each other (30 pictures/s against 25
# on two cores); OMP_NUM_THREADS=N make demo decides otherwise
demo: $(VENV)/.made
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pellucid demo --data "$(DATA)"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench: $(VENV)/.dev
	$(BIN)/pellucid bench

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
