# make demo | test | lint: each makes .venv when it is missing, and can be repeated.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LINTED := build/lint
# Test files that run at once: many wait for a board or a time-out most of their time.
AT_ONCE ?= 2

.PHONY: demo test test-torch lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.tune
	$(BIN)/python -m tvmsep.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder --durations 30

# torch is large and slows every import of TVM down: the tests that need it have their own venv.
test-torch: .venv-torch/.test
	.venv-torch/bin/python -m pytest tests/test_frontends.py tests/test_session.py \
	    tests/test_exporters.py -k "torch or pt2"

# mypy wants an installed package that is not editable, seen from outside the root:
# the folders `schedules` and `targets` are packages of tvmsep only once installed.
lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(LINTED) build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --no-deps --target $(LINTED) .
	cd $(LINTED) && MYPYPATH=. $(CURDIR)/$(BIN)/python -m mypy \
	    --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/build/mypy -p tvmsep

clean:
	rm -rf build dist *.egg-info $(VENV)/.tune $(VENV)/.test

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tvmsep needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp a set of extras, renewed when the requirements change.
$(VENV)/.tune: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[tune]'
	touch $@

$(VENV)/.test: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[tune,report,test]'
	touch $@ $(VENV)/.tune

.venv-torch/.test: pyproject.toml setup.py | $(BIN)/python
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -e '.[tune,report,test,torch,exporters]'
	touch $@
