# Two commands: `make run` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS   ?=

.PHONY: run test check setup soak models docs clean
.DEFAULT_GOAL := run

run: setup          ## train a model on a text, then talk to it; ARGS="--no-chat", ARGS="my.txt" …
	@$(BIN)/loquela quickstart $(ARGS)

test: $(VENV)/.dev check  ## every check and test
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not soak"

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

soak: $(VENV)/.dev  ## the full counts of the reliability checks; hours
	@$(BIN)/python -m pytest -m soak

models: $(VENV)/.run  ## make the models in the package again, from the texts in DATA; about two hours of one core
	@test -n "$(DATA)" || { echo "make models needs the texts: make models DATA=DIRECTORY (recipes/house/cards.yaml names them)"; exit 1; }
	@$(BIN)/python recipes/house/make.py --data "$(DATA)" --output runs/house/models $(ARGS)

docs: $(VENV)/.dev  ## the documentation site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

setup: $(VENV)/.run

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Loquela needs Python 3.10 or newer; name one with: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Setting up .venv (once, a few minutes) …"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(PIP) --editable '.[dev]'
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix $(VENV)/node typescript@5.9.3 >/dev/null || \
		echo "no TypeScript compiler could be installed: the page's types are not checked"; fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
