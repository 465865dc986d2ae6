# One command does everything on a fresh machine: Python 3.11 or newer, pip and make are enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
EXTRAS := torch,jax,conformance,docs,dev
TARGETS ?= numpy torch jax
TRAINERS ?= verl@0.9.0 verl trl areal openrlhf ms-swift
JOBS ?= 2
FUZZ ?= 100000
export JAX_PLATFORMS ?= cpu
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup check trainers test lint format types unit vectors docs bench build pin clean fuzz matrix lock mutation gpu

help:  ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## create .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt hatchling torch
	$(BIN)/python -m pip install --quiet --no-compile --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

check: setup  ## run the conformance suite on NumPy, PyTorch and JAX
	$(BIN)/gspo check $(TARGETS)

trainers: setup  ## set up TRAINERS in environments of their own, and check their real code
	$(BIN)/gspo trainers setup $(TRAINERS)
	$(BIN)/gspo check $(TRAINERS) $(addsuffix :default,$(TRAINERS))

test: lint types unit vectors docs  ## everything that CI runs

lint: setup  ## ruff, rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup  ## apply the format and the fixes that ruff knows
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: setup  ## basedpyright: strict on gspo_core and on uses of the packages, standard on the suite
	$(BIN)/basedpyright

# Of the time of JAX's tests most is compilation: programs that run once are not optimised, and what was compiled is kept
# for the other tests and the next run. `pytest` by itself optimises; XLA_FLAGS= too, for a jaxlib that knows other flags.
unit: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
	--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
unit: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/$(VENV)/jax
unit: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
unit: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
unit: setup  ## the tests and every example in the documentation
	$(BIN)/pytest -q -n $(JOBS) gspo_core
	$(BIN)/pytest -q -n $(JOBS) backends
	$(BIN)/pytest -q -n $(JOBS) conformance
	$(BIN)/pytest -q -n $(JOBS) examples
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile README.md docs

vectors: setup  ## recompute every golden vector and the table of clauses; fail where one differs
	$(BIN)/gspo vectors regen --check --jobs $(JOBS)
	$(BIN)/gspo vectors trace --check
	$(BIN)/gspo trainers pages --check --out docs/trainers

drawn: setup  ## draw the figures and write the gallery of mistakes anew; the tests hold them to it
	$(BIN)/python docs/drawing/figures.py
	$(BIN)/python docs/drawing/mistakes.py

fuzz: setup  ## FUZZ random cases (100000), nightly: new ones each time, a failure prints the smallest
	FUZZ=$(FUZZ) $(BIN)/pytest -q conformance/tests/fuzz

mutation: setup  ## change gspo_core in one small way after the other: a test or a vector must notice; an hour; MUTATION='--module ratio'
	$(BIN)/python .ci/mutation.py $(MUTATION)

docs: setup  ## the site, into site/
	$(BIN)/mkdocs build --strict

bench: setup  ## measure, into docs/benchmarks; trainers that are set up take part; PEERS=PYTHON has TRL and Liger, TUNIX=PYTHON Tunix
	$(BIN)/python backends/benchmarks/loss.py --out docs/benchmarks
	$(BIN)/python backends/benchmarks/launches.py --out docs/benchmarks
	$(BIN)/python backends/benchmarks/linear.py --out docs/benchmarks $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python backends/benchmarks/jax_loss.py --out docs/benchmarks $(if $(TUNIX),--peers $(TUNIX))
	$(BIN)/python backends/benchmarks/jax_linear.py --out docs/benchmarks $(if $(TUNIX),--peers $(TUNIX))
	$(BIN)/python backends/benchmarks/wire.py --out docs/benchmarks
	$(BIN)/python backends/benchmarks/limits.py --out docs/benchmarks

gpu: setup  ## on a machine with a GPU: the suite there, and what is measured there, in eight minutes
	$(BIN)/python backends/benchmarks/gpu.py --out docs/benchmarks

build: setup  ## wheel and sdist, into dist/
	$(BIN)/python -m build --no-isolation

matrix: setup  ## the wheel with every Python here and the oldest and newest packages; MATRIX=--frameworks for PyTorch and JAX
	$(BIN)/python .ci/matrix.py $(MATRIX)

lock: setup  ## requirements.lock from constraints.txt, with hashes; LOCK='--wheel FILE' for what the index lacks
	$(BIN)/python .ci/lock.py $(LOCK)

pin: setup  ## write the installed versions to constraints.txt
	{ head -1 constraints.txt; $(BIN)/pip freeze --all --exclude-editable \
		| grep -viE '^(pip|setuptools)=' | sed 's/+cpu//'; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove everything that was generated, .venv included
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache .hypothesis .mutation
