# Everything happens in .venv; the first run installs it, later runs are quick.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Without its dependencies: nixl wants the builds for CUDA 12 and 13 both, one is enough.
NIXL := $(PIP) --no-deps nixl nixl-cu13

# make demo PREFILL=2 DECODE=2 PORT=9000 ADMIN_PORT=9001 RPC_PORT=9002 ARGS="--dtype bfloat16"
PREFILL ?= 1
DECODE ?= 1
PORT ?= 8000
ADMIN_PORT ?= 8001
RPC_PORT ?= 8002
ARGS ?=

# Two tests at a time, as they mostly wait: tests/shares.py says which.
JOBS ?= 2
TESTS := $(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo nixl test test-slow test-faults rolling chaos check format protos train-demo clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## start a small cluster with the demo model, say how to talk to it
	@$(BIN)/baton up --model model/demo/checkpoint --served-model-name baton-demo \
		--prefill $(PREFILL) --decode $(DECODE) --port $(PORT) --admin-port $(ADMIN_PORT) \
		--rpc-port $(RPC_PORT) --local-prefill-queue 0 $(ARGS)  # every prompt is handed over, to be watched

nixl: $(VENV)/.demo ## add the KV transport nixl (Linux x86_64, 58 MB)
	$(NIXL)

test: $(VENV)/.dev ## run the tests
	$(TESTS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev ## run the long matrices too
	$(TESTS) $(ARGS)

# make test-faults FAULTS=30 SEED=7 ARGS="-k shm"
test-faults: $(VENV)/.dev ## 100 random faults per KV transport, against real processes
	$(BIN)/python -m pytest tests/faults -m slow -s $(ARGS)

rolling: $(VENV)/.dev ## restart every worker in turn under load; upgrade from the protocol before
	$(BIN)/python -m pytest tests/e2e/test_rolling.py -s $(ARGS)

# make chaos ARGS="--seed 7 --faults 100 --streams 1000"; ARGS=--help says what else there is
chaos: $(VENV)/.dev ## two gateways, six workers, real load, a seeded schedule of faults
	$(BIN)/python -m tests.chaos $(ARGS)

check: $(VENV)/.dev ## lint, format, types, who imports whom, stale stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m baton.stubs --check

format: $(VENV)/.dev ## bring the code into the form that check demands
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/.dev ## generate baton/v1 from proto/
	$(BIN)/python -m baton.stubs

train-demo: $(VENV)/.demo ## train the demo model anew (tens of minutes)
	$(BIN)/python -m model.demo.train --out model/demo/checkpoint

clean: ## remove .venv and everything generated
	rm -rf $(VENV) build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' \
		|| { echo "Baton needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# A stamp is older than its sources when a version or an extra has changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(PIP) -e '.[gateway,worker,tui]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) with tools for development; the first time takes some minutes"
	@$(PIP) -e '.[dev]'
	@$(NIXL) || echo "no NIXL for this machine: its tests are skipped"
	@touch $(VENV)/.demo $@
