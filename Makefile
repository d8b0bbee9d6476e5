# Each target does its own set-up in .venv and repeats nothing that is up to date.
# Variables: PYTHON (to make .venv with), PRESET, DATA_DIR, RESULTS_DIR, ARGS (more of the study's options).

PYTHON ?= python3
PRESET ?= demo
DATA_DIR ?=
RESULTS_DIR ?=
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup study test lab lint clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(INSTALLED): pyproject.toml requirements.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

setup: $(INSTALLED)  ## make .venv with the tested versions

study: $(INSTALLED)  ## run the study: PRESET=demo on the phantom, or DATA_DIR=<folder> PRESET=laptop
	$(BIN)/python -m fetal_utils.study --preset $(PRESET) \
		$(if $(DATA_DIR),--data-dir '$(DATA_DIR)') $(if $(RESULTS_DIR),--results-dir '$(RESULTS_DIR)') $(ARGS)

test: $(INSTALLED)  ## run every test
	$(BIN)/python -m pytest $(ARGS)

lab: $(INSTALLED)  ## open JupyterLab on the notebooks; without a browser, print its address
	$(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) \
		--LabApp.default_url=/lab/tree/notebooks/01_data_preparation.ipynb

lint: $(INSTALLED)  ## check style and that notebooks carry no outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

clean:  ## remove the environment and caches; data and results stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
