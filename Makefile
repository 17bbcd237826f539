# make repro   environment, installation, the whole pipeline; then the numbers and where the pictures are
# make words   concept distillation of both words up to its Table 2, side by side, a core for each; after make repro
# make test    environment, installation, the tests
# make plan    what a run of the present parameters needs: hours, disk, memory, weights, data sets (PROFILE=sd14: of a
#              profile's values; TARGETS="attentioncut@test tables/diffusionseg-tab3/dvc.yaml": of these alone)
# make verify  re-hash cache and workspace, name every damaged or missing file
# Both work offline once installed, in a path with spaces, and do nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

# Of each word; --single-item, as two walks through the whole pipeline would lock each other out.
FIRST := concept mean_attention distill_inpaint refine_masks
WORD := $(FIRST) concept_set mask_sampled export_set distill_unet distill_unet_syn evaluate_distillation
OTHER := $(addprefix tables/distillation/dvc.yaml:,$(FIRST) concept_set distill_unet evaluate_distillation)

.PHONY: repro words test plan verify install
.DELETE_ON_ERROR:

repro: .venv/installed
	$(IN_VENV) python -m dvc repro
	@$(IN_VENV) python -m json.tool metrics/summary.json
	@echo "pictures: metrics/grids/*.png   curves: metrics/plots/*.png   all in one page: dvc plots show"

words: .venv/installed
	$(IN_VENV) MASKMILL_WORKERS=1 python -m dvc --wait-for-lock repro -s $(WORD) & first=$$!; \
	$(IN_VENV) MASKMILL_WORKERS=1 python -m dvc --wait-for-lock repro -s $(OTHER); second=$$?; wait $$first && exit $$second
	$(IN_VENV) python -m dvc repro -s tables/distillation-tab2/dvc.yaml

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
