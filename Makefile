# make help   (each target installs what it needs into .venv)
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install lowest demo test shapes check lint docs bench bench-gpu format embedded families trust mutants

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

install: $(INSTALLED) ## what everything below needs, into .venv, at the versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The lowest versions that pyproject.toml allows, in .lowest; needs uv (`pip install uv`).
lowest: ## an environment of the lowest versions allowed, in .lowest
	uv venv --quiet --allow-existing .lowest
	uv pip compile --quiet --resolution lowest-direct --extra test pyproject.toml --output-file .lowest/requirements.txt
	uv pip install --quiet --python .lowest/bin/python --requirement .lowest/requirements.txt --editable .

demo: $(INSTALLED) ## a first table on the small embedded model
	$(BIN)/caa demo

# Two processes of one thread each: tiny models gain nothing from more threads. tests/conftest.py orders the files.
test: $(INSTALLED) shapes ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Every call in these tests is held against its annotations, which takes twice the time.
SHAPED := $(addprefix tests/test_,operators.py scopes.py methods.py patching.py projections.py reader.py vector.py wrapper.py)
CHECKER := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
shapes: $(INSTALLED) ## shapes and types of tensors, as annotations say them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" --numprocesses 2 "--jaxtyping-packages=caa,$(CHECKER)" $(SHAPED)

check: $(INSTALLED) lint docs ## formatting, lint, types, imports, documentation
	$(BIN)/python -m pytest -q tests/test_rooms.py tests/test_style.py

lint: $(INSTALLED) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation, in site/; a warning is an error.
docs: $(INSTALLED) ## the documentation's site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# About 15 minutes on a quiet machine of two cores; for a minute's trial, `.venv/bin/python -m benchmarks.run --short`.
bench: benchmarks/.peers/.installed ## speed and memory beside other tools, 15 minutes
	$(BIN)/python -m benchmarks.run

# The same jobs on one CUDA card, with the shapes of Llamas of 1B and 7B in bfloat16: about 8 minutes.
bench-gpu: benchmarks/.peers/.installed ## the same jobs on one CUDA card, 8 minutes
	$(BIN)/python -m benchmarks.run --only sweep extraction overhead compiled table training

benchmarks/.peers/.installed: $(INSTALLED) benchmarks/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target benchmarks/.peers --requirement benchmarks/requirements.txt
	touch $@

trust: $(INSTALLED) ## count the faults that the tests try, for docs/trust.md (10 minutes of a quiet core)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m tests.trust_table

# One place of the code is changed at a time; `.venv/bin/python -m tests.mutants --help` says how to choose which.
mutants: .mutants/.installed ## whether the tests notice 150 changes of the code, drawn, changed files first
	OMP_NUM_THREADS=1 PYTHONPATH=.:.mutants $(BIN)/python -m tests.mutants $(OPTIONS)

.mutants/.installed: $(INSTALLED) tests/mutants.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target .mutants --requirement tests/mutants.txt
	touch $@

families: $(INSTALLED) ## every causal language model of transformers, tiny, against a plain hook (10 minutes of a quiet core)
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python tests/families.py --write docs/families.md

format: $(INSTALLED) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pretrain the embedded models again, from their grammar (hours on a CPU, minutes on a GPU).
embedded: $(INSTALLED) ## pretrain the embedded models again
	$(BIN)/python recipes/embedded/pretrain.py
