# make repro   environment, installation, the whole pipeline; then the numbers and where the pictures are
# make test    environment, installation, the tests
# make plan    what a run of the present parameters needs: hours, disk, memory, weights, data sets (PROFILE=sd14: of a
#              profile's values; TARGETS="attentioncut@test tables/diffusionseg-tab3/dvc.yaml": of these alone)
# make verify  re-hash cache and workspace, name every damaged or missing file
# Both work offline once installed, in a path with spaces, and do nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: repro test plan verify install
.DELETE_ON_ERROR:

repro: .venv/installed
	$(IN_VENV) python -m dvc repro
	@$(IN_VENV) python -m json.tool metrics/summary.json
	@echo "pictures: metrics/grids/*.png   curves: metrics/plots/*.png   all in one page: dvc plots show"

test: .venv/tested
	$(IN_VENV) python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

plan: .venv/installed
	@$(IN_VENV) python -m maskmill.plan $(if $(PROFILE),--profile $(PROFILE)) $(TARGETS)

verify: .venv/installed
	@$(IN_VENV) python -m maskmill.verify

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(IN_VENV) python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(IN_VENV) python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch .venv/installed

.venv/tested: .venv/installed pyproject.toml
	$(IN_VENV) python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch .venv/tested
