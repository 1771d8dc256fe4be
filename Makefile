# Everything a developer or a CI runs. `make` alone prints the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast compile bench bench-art robustness lint format lock clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## Install everything into .venv, exact versions checked by hash

$(INSTALLED): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/tools.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

EVALUATE := $(BIN)/evasion run fgm_evaluation --data-dir-train data/mnist/training --data-dir-test data/mnist/testing \
  --model-architecture le_net --epochs 12 --batch-size 32 --validation-split 0.1 --eps 0.2 --seed 1

demo: $(INSTALLED)  ## Attack and defend a LeNet on MNIST digits; print the table and the report's path
	$(BIN)/python -m evasion.pipelines.mnist data/mnist
	$(EVALUATE)

# Two at a time, a file each: most of their time goes into starting Python and TensorFlow.
PARALLEL := --numprocesses 2 --dist loadfile

test: $(INSTALLED)  ## Run all tests
	$(BIN)/pytest $(PARALLEL)

test-fast: $(INSTALLED)  ## Run the tests that take seconds
	$(BIN)/pytest $(PARALLEL) -m "not slow"

# Files that are committed and that tests hold to the code.
compile: $(INSTALLED)  ## Renew the compiled pipelines and steps, and the description of their interface
	$(BIN)/evasion compile all --device cpu --output pipelines/compiled/cpu
	$(BIN)/evasion compile all --device gpu --output pipelines/compiled/gpu
	$(BIN)/evasion compile all --steps --output components
	$(BIN)/python tests/pipelines/interface.py

bench: $(INSTALLED)  ## Measure the peak memory of every stage over 1,000 and 10,000 images
	$(BIN)/python tests/benchmarks/memory.py

# The newest run below a folder.
newest = $$(ls -td $(1)/*evaluation* | head -1)
ROBUSTNESS := build/robustness
robustness: $(INSTALLED)  ## Compare a LeNet with one trained against PGD: the README's figure
	$(BIN)/python -m evasion.pipelines.mnist data/mnist
	$(EVALUATE) --output $(ROBUSTNESS)/plain
	$(EVALUATE) --output $(ROBUSTNESS)/pgd --apply-defense true --pgd-eps 0.3 --pgd-eps-step 0.1 --pgd-max-iter 7
	$(BIN)/evasion compare $(call newest,$(ROBUSTNESS)/plain) $(call newest,$(ROBUSTNESS)/pgd) \
	  --name "plain training" --name "PGD training" --output $(ROBUSTNESS)/comparison

bench-art: $(INSTALLED)  ## Compare attacks with ART's own classes, and time the security curve
	$(BIN)/python tests/benchmarks/against_art.py

# mypy does not find an editable install's modules, so it is shown the two packages under their namespace.
TYPED := build/typed/evasion
lint: $(INSTALLED)  ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	mkdir -p $(TYPED)
	ln -sfn $(CURDIR)/components $(TYPED)/components
	ln -sfn $(CURDIR)/pipelines $(TYPED)/pipelines
	MYPYPATH=build/typed $(BIN)/mypy -p evasion.components -p evasion.pipelines

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock:  ## Renew the exact versions in requirements/
	cd requirements && uv pip compile --quiet --no-header --generate-hashes --python-version 3.11 tools.in -o tools.txt
	uv pip compile --quiet --no-header --generate-hashes --python-version 3.11 --extra cpu --extra demo --extra dev \
	  pyproject.toml -o requirements/dev.txt

clean:  ## Remove what was built, run and installed
	rm -rf $(VENV) build data runs
