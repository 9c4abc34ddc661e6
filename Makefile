# The one list of tasks. pixi.toml holds the same names and the same commands, and a test keeps them equal.
# Wanted on the machine: Python 3.11 and make. Everything else goes into $(VENV), at the pinned versions.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)

# A prompt may hold quotes, dollars and anything else: it reaches the command through the environment, unexpanded.
override PROMPT := $(value PROMPT)
export PROMPT

##@ Pictures
.PHONY: generate serve compile info
generate: $(VENV)/.runtime ## draw PROMPT="a red star on a blue background"; more flags in ARGS="--seed 3"
	max-zimage generate $(if $(PROMPT),"$$PROMPT") $(ARGS)

serve: $(VENV)/.runtime ## the embedded model behind an HTTP API on port 8000
	max-zimage serve $(ARGS)

compile: $(VENV)/.runtime ## every graph for ARGS="--target cuda:sm_90a", with or without that GPU here
	max-zimage compile $(ARGS)

info: $(VENV)/.runtime ## devices, versions and what the checkpoint needs
	max-zimage info $(ARGS)

##@ Work on the code
.PHONY: fmt lint types test fuzz bench gpu-run gpu-compile gpu-pack report docs quality profile size wheel-check
.PHONY: embedded-model text-model
fmt: $(VENV)/.test ## rewrite Python and Mojo in the project's format
	ruff check --fix . && ruff format . && mblack --quiet -l 120 --include '\.mojo' kernels

lint: $(VENV)/.test ## what fmt would change, and spelling
	ruff check . && ruff format --check . && mblack --check --quiet -l 120 --include '\.mojo' kernels && typos

types: $(VENV)/.test ## mypy, strict on the package, less so on tests and benchmarks
	mypy

test: $(VENV)/.test ## the test suite; pick with ARGS="-k images"
	pytest -n 2 --dist loadfile $(ARGS)

fuzz: $(VENV)/.test ## damaged pictures, checkpoints, caches, killed servers and requests, by the thousand; pick with ARGS="images"
	python -m tests.fuzzers $(ARGS)

bench: $(VENV)/.test ## seconds, rates and quality against diffusers
	python -m benchmarks $(ARGS)

gpu-run: $(VENV)/.test ## what is to be measured on a GPU, the most valuable first; ARGS="--small" tries it on the CPU
	python -m benchmarks.gpu_run $(ARGS)

gpu-compile: $(VENV)/.test ## its graphs, for a GPU that is not here: ARGS="--work DIR"
	python -m benchmarks.gpu_run.compile $(ARGS)

gpu-pack: $(VENV)/.test ## these and all packages in parts, for a machine without a network: ARGS="KIT --work DIR"
	python -m benchmarks.gpu_run.pack $(ARGS)

report: $(VENV)/.test ## tables and plots of README and docs/ from benchmarks/results; ARGS=--check only compares
	python -m benchmarks.report $(ARGS)

docs: $(VENV)/.test ## the site of docs/ with the API from the docstrings, strictly, in build/site
	python -m benchmarks.docs $(ARGS)

profile: $(VENV)/.runtime ## where the seconds of a picture go; a component alone with ARGS="--component vae"
	max-zimage profile $(ARGS)

quality: $(VENV)/.test ## what step caches save, and what it does to the pictures; samplers, guidance, tiles with ARGS=requests
	python -m benchmarks.quality $(ARGS)

embedded-model: $(VENV)/.test ## train it from nothing with ARGS="train DIR", 1.5 hours; score one with ARGS="evaluate MODEL"
	python -m benchmarks.training $(ARGS)

text-model: $(VENV)/.test ## train the text model with ARGS="train DIR", under an hour; score one with ARGS="evaluate MODEL"
	python -m benchmarks.training.text $(ARGS)

size: $(VENV)/.runtime ## lines a file and a function
	python -m benchmarks.size $(ARGS)

wheel-check: $(VENV)/.test ## build the wheel, install it in an empty environment elsewhere, draw a picture
	python -m tests.house.check_wheel $(ARGS)

##@ Set up (the tasks above do this by themselves)
.PHONY: help clean
$(VENV)/bin/pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@# The pip that Python 3.11 brings gives up on MAX together with diffusers (ResolutionImpossible).
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt pip
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo 'Installing MAX and what goes with it into $(VENV): about 2 GB, once.'
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo 'Installing what tests need: PyTorch, diffusers and the tools, once.'
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
