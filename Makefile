# make demo | test | check | docs | bench | install   (each installs what it needs into .venv)
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test check docs bench bench-gpu format embedded

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/caa demo

# Two processes of one thread each: tiny models gain nothing from more threads.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(INSTALLED) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_rooms.py

# The documentation, in site/; a warning is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# About 15 minutes on a quiet machine of two cores; for a minute's trial, `.venv/bin/python -m benchmarks.run --short`.
bench: benchmarks/.peers/.installed
	$(BIN)/python -m benchmarks.run

# The same jobs on one CUDA card, with the shapes of Llamas of 1B and 7B in bfloat16: about 8 minutes.
bench-gpu: benchmarks/.peers/.installed
	$(BIN)/python -m benchmarks.run --only sweep extraction overhead table training

benchmarks/.peers/.installed: $(INSTALLED) benchmarks/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target benchmarks/.peers --requirement benchmarks/requirements.txt
	touch $@

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pretrain the embedded models again, from their grammar (hours on a CPU, minutes on a GPU).
embedded: $(INSTALLED)
	$(BIN)/python recipes/embedded/pretrain.py
