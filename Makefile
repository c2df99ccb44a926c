# make quickstart   train on the embedded digits and draw pictures, a few minutes on two CPU cores
# make test         the test suite, without a GPU or a download beyond the package index
# make test-all     the same, then the long tests
#
# Options: PYTHON=python3.12  EXTRAS=cuda|tpu (accelerator wheels)  VENV=.venv

PYTHON ?= python3
EXTRAS ?=
VENV ?= .venv

version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# A Python newer than the newest constraints file gets that file.
constraints := $(firstword $(wildcard constraints/py$(version).txt) $(lastword $(sort $(wildcard constraints/py*.txt))))
comma := ,
installed := $(VENV)/.installed-$(or $(EXTRAS),cpu)

.PHONY: quickstart test test-all install clean
.DELETE_ON_ERROR:

quickstart: install
	$(VENV)/bin/python -m experiments.quickstart

pytest := $(VENV)/bin/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

test: install
	$(pytest) -m "not long"

test-all: test
	$(pytest) -m long

install: $(installed)

$(installed): setup.cfg pyproject.toml $(constraints)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is Python $(or $(version),(not found)); 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing into $(VENV) with $(constraints) ..."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(constraints) -e '.[test$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
