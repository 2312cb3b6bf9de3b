# make book   builds the book        make test   runs every test
# make check  runs the quick tests   make bench  runs the benchmarks
# make lab    opens JupyterLab on the pages
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: book test check lint lab bench clean install
.DEFAULT_GOAL := book

install: $(INSTALLED)

# torch-fidelity asks for torchvision, which its Inception network does without.
$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torch-fidelity -c constraints.txt
	touch $@

# One core a process: two pages, or two test workers, run side by side.
book test check: export OMP_NUM_THREADS := 1
# What is trained once and kept, such as the classifier that judges digits, stays in the clone.
book test check bench: export DIFFBOOK_CACHE := $(CURDIR)/_build/cache

# After a failed build the pages are written again next time: their warnings must not get lost.
book: $(INSTALLED)
	$(BIN)/python book/_ext/diffbook_cache.py
	$(BIN)/jupyter-book build . -W -n --keep-going --quiet \
		|| { rm -rf _build/html _build/.doctrees; exit 1; }
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: book lint
	$(BIN)/pytest -n 2

# For use while working: everything but the slow tests; the pages need not be built.
check: lint
	$(BIN)/pytest -n 2 -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Jupyter wants to be told that root is meant.
lab: $(INSTALLED)
	$(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/book $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(INSTALLED)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The environment stays; `rm -r .venv` removes it too.
clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
