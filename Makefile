# Targets for users, pre-commit and CI. `make` alone lists them.
SHELL := bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# The embedded store, unless the environment names another one.
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db
export MLFLOW_DISABLE_TELEMETRY ?= true
# `mlflow run` starts "python", which has to be the one with the dependencies.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# pip refuses to install for a user into an environment.
export PIP_USER := no

EXPERIMENT ?= freqfilter
MINUTES ?= 0
SEED ?=
ARGS ?=
RUN := $(BIN)/mlflow run . --env-manager local --experiment-name $(EXPERIMENT)

.DEFAULT_GOAL := help
.PHONY: help install train original alternatives story notebooks screenshots mlproject docs bench ui serve test test-extras soak lint format lock clean

help:  ## list all targets
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing the pinned dependencies into $(VENV) (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/installed_dev: $(VENV)/installed
	@echo "installing the development dependencies"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

install: $(VENV)/installed  ## create the environment; nothing is installed twice

train: $(VENV)/installed  ## train the default recipe; ARGS="-P epochs=3" passes parameters
	@$(BIN)/python -m freqfilter init_store
	@$(RUN) $(ARGS)

original: $(VENV)/installed  ## train the recipe of the original script
	@$(BIN)/python -m freqfilter init_store
	@$(RUN) -e original $(ARGS)

# Runs of docs/alternatives.md: selection of the default recipe, at a third of its windows; sizes, cells and losses with
# fresh noise and Adam for 4 epochs; the original's data and recipe on 1 of its 10 seconds for 30 epochs, validated on
# independent noise so that scheduler and early stopping get valid losses; and the time of an epoch on that second.
CHOICE := {seed: [43, 44], targets: clean, optimizer: adam, learning_rate: [0.0025, 0.01], precision: fp32, \
  scheduler: plateau, batch_size: [64, 256], windows_per_epoch: [16000, 64000], dropout: 0.1, weight_decay: 1e-4, cell: gru, \
  gradient_clip_norm: [0, 0.1, 0.5], epochs: 4}
THIRD := -P epochs=8 -P validate_every=8 -P validation_realizations=4 -P validation_windows=null -P holdout_every=0
ADAM_RATES := {learning_rate: [0.0025, 0.01]}
ADAM := -P optimizer=adam -P scheduler=plateau -P scheduler_patience=2 -P learning_rate=0.002 -P batch_size=64 \
  -P windows_per_epoch=null -P targets=clean -P precision=fp32 -P validation_windows=null
ALTERNATIVES := {seed: [43, 44], hidden_size: [64, 256], num_layers: [1, 3], dropout: [0.2, 0.4], \
  batch_size: [32, 128], weight_decay: [1e-5, 1e-4], bidirectional: true, cell: gru, loss: [mae, huber, snr]}
OVERFITTING := {seed: [43, 44], split: random, dropout: [0, 0.4], weight_decay: 1e-4, hidden_size: 64, noise: fresh, \
  augment_noise_std: [0.05, 0.1], early_stopping_patience: [3, 5], scheduler_patience: 2}
AUGMENTED := {augment_noise_std: 0.1}
FIXED_NOISE := -P recipe=original -P split=independent -P epochs=30
ONE_SECOND := -P n_samples=1000 -P duration_s=1
ABLATE := $(RUN) -e ablate -P threads=1

alternatives: $(VENV)/installed  ## train the alternatives of docs/alternatives.md, three and a half hours
	@$(BIN)/python -m freqfilter init_store
	@$(ABLATE) $(THIRD) -P values="$(CHOICE)"
	@$(ABLATE) $(THIRD) -P optimizer=adam -P values="$(ADAM_RATES)"
	@$(ABLATE) $(ADAM) -P epochs=4 -P values="$(ALTERNATIVES)"
	@$(ABLATE) $(ONE_SECOND) $(FIXED_NOISE) -P values="$(OVERFITTING)"
	@$(ABLATE) $(ONE_SECOND) $(FIXED_NOISE) -P augment_gain_db=3 -P values="$(AUGMENTED)"
	@$(ABLATE) $(ADAM) $(ONE_SECOND) -P epochs=3 -P holdout_every=0 -P values="$(ALTERNATIVES)"

story: $(VENV)/installed  ## draw the README's first picture from the newest runs of the default and the original
	@$(BIN)/python docs/draw_story.py $(EXPERIMENT)

notebooks: $(VENV)/installed_dev  ## execute the notebooks and write their outputs into them, three minutes
	@$(BIN)/python notebooks/execute.py notebooks/*.ipynb

# Six full-size trainings and two decisions, then the tests of MLflow's UI on their store.
SHOTS := build/screenshots
screenshots: export MLFLOW_TRACKING_URI := sqlite:///$(CURDIR)/$(SHOTS)/mlflow.db
screenshots: $(VENV)/installed_dev  ## take the pictures of docs/how-to/mlflow_ui.md, an hour; needs Chromium
	@rm -rf $(SHOTS) && mkdir -p $(SHOTS)
	@cd $(SHOTS) && PYTHONPATH="$(CURDIR)" python -m tests.ui.six_runs
	@FREQFILTER_SCREENSHOTS=1 $(BIN)/python -m pytest tests/ui

mlproject: $(VENV)/installed  ## write the MLproject's comments from params.yaml
	@$(BIN)/python docs/mlproject.py

docs: $(VENV)/installed_dev  ## build the documentation's site into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "read it: $(VENV)/bin/python -m http.server --directory site 8000, http://127.0.0.1:8000"

bench: $(VENV)/installed  ## run the benchmarks, an hour and three quarters; PARTS="epoch start" selects some
	@$(BIN)/python -m benchmarks $(PARTS)

ui: $(VENV)/installed  ## start the MLflow UI on the same store, http://127.0.0.1:5000
	@$(BIN)/python -m freqfilter ui $(ARGS)

serve: $(VENV)/installed  ## serve the champion on http://127.0.0.1:5001; ARGS="--version 3" selects another version
	@$(BIN)/python -m freqfilter serve $(ARGS)

# One more than two cores, since some tests wait for servers and timeouts.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed_dev  ## run the tests, three at a time; the last line names those this machine cannot run
	@$(BIN)/python -m pytest $(PARALLEL) -m "not extra" $(ARGS)

# Exit status 5: no test has this mark.
test-extras: $(VENV)/installed_dev  ## run the tests that need services or optional libraries
	@$(BIN)/python -m pytest $(PARALLEL) -m extra $(ARGS) || [ $$? -eq 5 ]

soak: $(VENV)/installed_dev  ## run the randomized tests with many trials, an hour; repeat with new seeds for MINUTES
	@ends=$$(( $$(date +%s) + 60 * $(MINUTES) )); seed=$(or $(SEED),$$RANDOM$$RANDOM); \
	while echo "SEED=$$seed"; do \
	  FREQFILTER_SOAK=1 FREQFILTER_SEED=$$seed $(BIN)/python -m pytest --numprocesses 2 --dist load \
	    --hypothesis-seed=$$seed -m soak $(ARGS) || exit 1; \
	  [ $$(date +%s) -lt $$ends ] || break; seed=$$RANDOM$$RANDOM; \
	done

lint: $(VENV)/installed_dev  ## run formatter, linter and type checker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/installed_dev  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(VENV)/installed_dev  ## write constraints.txt from the installed packages
	@$(BIN)/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' > constraints.txt

clean:  ## remove the environment and caches, but not runs and store
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist site
