# make repro   environment, installation, the whole pipeline; then the numbers and where the pictures are
# make test    environment, installation, the tests
# Both work offline once installed, in a path with spaces, and do nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: repro test install
.DELETE_ON_ERROR:

repro: .venv/installed
	$(IN_VENV) python -m dvc repro
	@$(IN_VENV) python -m json.tool metrics/summary.json
	@echo "pictures: metrics/grids/*.png   curves: metrics/plots/*.png   all in one page: dvc plots show"

test: .venv/installed
	$(IN_VENV) python -m pytest

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(IN_VENV) python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(IN_VENV) python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch .venv/installed
