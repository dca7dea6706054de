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
types: ## mypy, strict, for the host's Python and the device's
	scripts/types.sh
test: ## the fast tests
	$(bin)/python -m pytest -m "not slow"
test-slow: ## the tests that take minutes
	$(bin)/python -m pytest -m slow --timeout 3600
bench: ## see tests/bench/README.md for the peers
	$(bin)/python tests/bench/bench_quantize.py
lock: ## renew constraints.txt (needs uv)
	( echo "# Exact versions of everything the scripts install; made by \`make lock\`."; \
	  echo "# torch's own CUDA packages are left to torch, which pins them itself."; \
	  echo torch==2.13.0 | uv pip compile -q --universal --python-version 3.11 --extra host \
	    --extra calibrate --extra plot --group dev --constraint - --no-annotate --no-header \
	    pyproject.toml | sed 's/+cpu//' | grep -v '^nvidia-\|^triton\|^cuda-' ) > constraints.txt
