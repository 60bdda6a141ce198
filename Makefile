# What people do here. `make` alone explains itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# A stack is a dozen processes that import the same libraries: without compiled files each of them compiles all of it.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
STACK := $(BIN)/python -m everloop.stack
READY := .venv/.ready
# Thread pools as wide as the machine, one in each of two test processes, would only fight.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup up down status demo test test-unit test-e2e test-faults test-clients test-cluster test-containers test-terraform images check check-deploy format generate lock clean

help: ## Show this
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9<>-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make bench-<name>   Run one benchmark of bench/; figures in .everloop/bench/<name>.json (ARGS=--help)"
	@echo
	@echo "  New here? \`make demo\` needs only python3.11 and git, and shows the whole loop."

setup: $(READY) ## Make .venv with everything in it (done by the others when needed)

$(READY): requirements.lock pyproject.toml $(wildcard libs/*/pyproject.toml services/*/pyproject.toml) tools/setup.sh
	@tools/setup.sh
	@touch $@

demo: setup ## Run the whole loop on real flights: data, training, serving, drift, retraining
	@$(BIN)/everloop demo

up: setup ## Start the embedded stack; data are kept between runs
	@$(STACK) up

down: setup ## Stop the embedded stack
	@$(STACK) down

status: setup ## Show every part of the stack: state, endpoint, memory
	@$(STACK) status

test: test-unit test-e2e ## Run every test a fresh machine can run

test-unit: setup ## Run the tests that start no part of the stack
	@$(PYTEST) -m "not e2e and not faults and not clients and not clusters and not containers and not terraform" -n 2 --durations 15

test-e2e: setup ## Run the tests that start the embedded stack
	@$(PYTEST) -m "e2e and not faults" --durations 15

test-faults: setup ## Run the long tests that kill processes
	@$(PYTEST) -m faults --timeout 1800

test-clients: setup ## Run stock clients (Triton, KServe, MLServer; in Go and JavaScript where those are) against replicas
	@$(PYTEST) -m clients --timeout 900

test-cluster: setup ## Install, upgrade and remove the chart on the cluster of KUBECONFIG (any; it is told apart by namespaces)
	@$(PYTEST) -m clusters --timeout 900

test-containers: setup images ## Run the images on the container engine of this machine
	@$(PYTEST) -m containers

test-terraform: setup ## Apply terraform/ to a stand-in of the AWS API
	@$(PYTEST) -m terraform

images: ## Build the images of the services (IMAGE_OPTIONS: further options of docker build)
	@tools/images.sh

check: setup ## Run linters, type checker and contract checks
	@tools/check.sh

check-deploy: setup ## Check the charts, the infrastructure and the scripts; installs the checkers it needs
	@tools/check_deploy.sh

format: setup ## Format the code and fix what can be fixed
	@.venv/bin/ruff check --fix-only --quiet . && .venv/bin/ruff format .

generate: setup ## Write the stubs of proto/
	@$(BIN)/python tools/generate.py

lock: setup ## Resolve requirements.lock again (UPGRADE=1: newest versions)
	@tools/lock.sh

bench-%: setup
	@$(BIN)/python -m bench.$(subst -,_,$*) $(ARGS)

clean: ## Stop the stack; remove what it and the tools wrote, but not .venv and downloads
	@if [[ -e $(READY) ]]; then $(STACK) down; fi
	@find .everloop -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} + 2>/dev/null || true
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
