# The same targets people and CI use. `make` lists them.
bin := .venv/bin

.PHONY: help setup demo check fmt lint types test test-slow bench lock
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
setup: ## make .venv with everything the tests need
	scripts/setup.sh host,calibrate dev
demo: ## build, verify and question the example model
	scripts/demo.sh
check: ## what CI runs
	scripts/test.sh
fmt: ## format and mend what ruff can
	$(bin)/ruff format . && $(bin)/ruff check --fix .
lint: ## ruff and the import contracts
	$(bin)/ruff format --check . && $(bin)/ruff check . && $(bin)/lint-imports
types: ## mypy, strict
	$(bin)/mypy
test: ## the fast tests
	$(bin)/python -m pytest -m "not slow"
test-slow: ## the tests that take minutes
	$(bin)/python -m pytest -m slow --timeout 3600
bench: ## see tests/bench/README.md for the peers
	$(bin)/python tests/bench/bench_quantize.py
lock: ## renew constraints.txt (needs uv)
	uv pip compile --universal --all-extras --group dev --no-emit-package edgekit --output-file constraints.txt pyproject.toml
