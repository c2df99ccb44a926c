# make install      create .venv with pinned versions
# make quickstart   draw from a shipped model, train on digits and compare, minutes on two CPU cores
# make test         run the test suite, without a GPU or a download beyond the package index
# make test-all     run the test suite, then the long tests
# make test-accelerator  test the GPU or TPU of this machine; fails where there is none
# make lint         check the formatting and run the linter; make format applies both
# make docs         build the documentation site in build/site; warnings are errors
# make notebooks    execute docs/notebooks and write their outputs into them
#
# Options: PYTHON=python3.12  EXTRAS=cuda13|cuda12|tpu (accelerator wheels)  VENV=.venv

PYTHON ?= python3
EXTRAS ?=
VENV ?= .venv

version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# A Python newer than the newest constraints file gets that file.
constraints := $(firstword $(wildcard constraints/py$(version).txt) $(lastword $(sort $(wildcard constraints/py*.txt))))
comma := ,
installed := $(VENV)/.installed-$(or $(EXTRAS),cpu)

.PHONY: quickstart test test-all test-accelerator lint format docs notebooks install clean
.DELETE_ON_ERROR:

quickstart: install
	$(VENV)/bin/python -m experiments.quickstart

pytest := $(VENV)/bin/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

test: install
	$(pytest) -m "not long"

test-all: test
	$(pytest) -m long

test-accelerator: install
	ACCELERATOR_TESTS=required $(VENV)/bin/python -m pytest tests/accelerator

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: install
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

notebooks: $(VENV)/.installed-notebooks
	$(VENV)/bin/python docs/_site/execute_notebooks.py

$(VENV)/.installed-docs $(VENV)/.installed-notebooks: $(VENV)/.installed-%: $(installed)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(constraints) -e '.[$*]'
	@touch $@

install: $(installed)

$(installed): setup.cfg pyproject.toml $(constraints)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is Python $(or $(version),(not found)); 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@case "$(EXTRAS)" in ''|cuda12|cuda13|cuda|tpu) ;; \
	  *) echo "error: EXTRAS=$(EXTRAS): write cuda13, cuda12 or tpu, or leave it out for CPUs" >&2; exit 1;; esac
	@echo "Installing into $(VENV) with $(constraints) ..."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(constraints) -e '.[test$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
