# What this repository offers; `make` lists it. Each target sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
SOURCES := llcompile runtime scripts tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

setup: ## make .venv with pinned packages, and fetch what Arm devices and the tests of the page need
	@$(PYTHON) scripts/setup_venv.py
	@$(BIN)/python scripts/setup_arm.py
	@$(BIN)/python scripts/setup_browser.py

demo: setup ## build a small chat model for three unequal devices, print the plan, ask it a question
	@$(BIN)/python scripts/demo.py

bench: setup ## measure beside llama.cpp, built on first use, into docs/llama_cpp.md; 42 minutes
	@$(BIN)/python benchmarks/llama_cpp.py

test: lint ## lint, type check, import contracts, all tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: setup ## the fast part of the check
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@MYPYPATH=scripts $(BIN)/mypy scripts/*.py
	@$(BIN)/lint-imports

format: setup ## format the code and sort imports
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

lock: ## write constraints.txt from what .venv holds
	@$(BIN)/python scripts/lock.py

clean: ## remove what was built; .venv and .arm stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -path ./.venv -prune -o -path ./.arm -prune -o -name __pycache__ -type d -exec rm -rf {} +
