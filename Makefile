# What a person types. Everything that is installed or cached lands in .venv, and nothing outside the checkout.
#   make report CONFIG=config/mistral-7b.yaml ARGS="--resources gpu=8"
#   make test ARGS="tests/unit -k matrix"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
CONFIG ?=
ARGS ?=

# The user's own model cache stays where it is; all other caches come into the environment.
export HF_HOME ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/huggingface
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/cache
export PIP_CACHE_DIR := $(CURDIR)/$(VENV)/cache/pip
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/cache/matplotlib
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install install-serving install-ray install-slurm install-vllm report study compare test check bench doctor schema lock clean

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\)[a-z -]*:.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

install: $(RUNTIME) ## the pinned environment in .venv

install-serving: $(RUNTIME) ## what engine transformers-serve needs besides
	$(BIN)/python -m pip install --quiet --requirement envs/requirements-serving.txt

install-ray: $(RUNTIME) ## what mode actors needs besides
	$(BIN)/python -m pip install --quiet --requirement envs/requirements-ray.txt

install-slurm: $(RUNTIME) ## what a Slurm cluster needs besides (profiles/slurm)
	$(BIN)/python -m pip install --quiet --requirement envs/requirements-slurm.txt

install-vllm: ## vLLM, in an environment of its own
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --requirement envs/requirements-vllm.txt

report: $(RUNTIME) ## run the study and write results/report.html
	@$(if $(CONFIG),$(BIN)/python scripts/matrix.py --read $(CONFIG))
	$(BIN)/snakemake --cores all $(if $(CONFIG),--configfile $(CONFIG)) $(ARGS)

study: $(RUNTIME) ## as report, with as many repeats as narrow intervals need
	@$(if $(CONFIG),$(BIN)/python scripts/matrix.py --read $(CONFIG))
	$(BIN)/python scripts/study.py $(if $(CONFIG),--configfile $(CONFIG)) $(ARGS)

compare: $(RUNTIME) ## make compare A=2x-h200-core B=results: two results cell by cell; fails where B is worse
	@$(BIN)/python scripts/compare.py $(A) $(B) $(ARGS)

test: $(DEV) ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: $(DEV) ## the gate: style, lint, generated files in step
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/python scripts/schema.py --check
	$(BIN)/python envs/lock.py --check

bench: $(DEV) ## measure crewbench itself: time and memory, no pass or fail (bench/cluster.py: eight minutes)
	@set -e; for file in bench/*.py; do echo "== $$file"; $(BIN)/python $$file; done

doctor: $(RUNTIME) ## what this machine has, and what is missing
	@$(BIN)/python scripts/doctor.py

schema: $(RUNTIME) ## write the JSON schemas and config/README.md from the models
	$(BIN)/python scripts/schema.py

lock: $(DEV) ## write envs/requirements*.txt from the .in files and what is installed
	$(BIN)/python envs/lock.py

clean: ## remove the environment; results stay
	rm -rf $(VENV)

# Stamps are files that pip's success leaves, so a second call does nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "crewbench needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment could be made: on Debian, apt install python3-venv" >&2; exit 1; }

$(RUNTIME): envs/requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --requirement envs/requirements.txt
	@touch $@

$(DEV): envs/requirements-dev.txt $(RUNTIME)
	$(BIN)/python -m pip install --quiet --requirement envs/requirements-dev.txt
	@touch $@
