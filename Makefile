# The same targets people and CI use. `make` lists them.
bin := .venv/bin

.PHONY: help setup demo check fmt lint types test test-slow test-arm64 hardware bench lock
help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
setup: ## make .venv with everything the tests need
	scripts/services.sh
	scripts/setup.sh host,calibrate,serve,bench,telemetry,modem,fleet,trt-check dev
demo: ## build, verify and question the example model
	scripts/demo.sh
check: ## what CI runs
	scripts/test.sh
fmt: ## format and mend what ruff can
	$(bin)/ruff format . && $(bin)/ruff check --fix .
lint: ## ruff and the import contracts
	scripts/test.sh lint
types: ## mypy, strict, for the host's Python and the device's
	scripts/test.sh types
test: ## the fast tests
	scripts/test.sh test
test-slow: ## the tests that take minutes; OpenAI's Node client among them needs node 20 and npm
	$(bin)/python -m pytest -m slow --timeout 3600
test-arm64: ## the container's Python part on an emulated arm64 Debian (root, some 10 minutes)
	scripts/arm64.sh
hardware: ## on an Orin: build BUNDLE's engine, check and time it, write hardware-report/ (docs/hardware.md)
	scripts/hardware.sh $(BUNDLE)
bench: ## see tests/bench/README.md for the peers
	$(bin)/python tests/bench/bench_quantize.py
lock: ## renew constraints.txt and constraints-jp62.txt (needs uv)
	( echo "# Exact versions of everything the scripts install; made by \`make lock\`."; \
	  echo "# torch's own CUDA packages are left to torch, which pins them itself."; \
	  echo torch==2.13.0 | uv pip compile -q --universal --python-version 3.11 --extra host \
	    --extra calibrate --extra serve --extra bench --extra telemetry --extra modem --extra fleet --extra tensorrt --extra trt-check --extra plot --group dev --constraint - --no-annotate --no-header \
	    pyproject.toml | sed 's/+cpu//' | grep -v '^nvidia-\|^triton\|^cuda-[bt]' ) > constraints.txt
	# CUDA's bindings are the JetPack's: jetson.Dockerfile pins them.
	( echo "# What JetPack 6.2's Python 3.10 on aarch64 installs for the extras \`device\`, \`serve\`, \`telemetry\`, \`tensorrt\`; made by \`make lock\`."; \
	  uv pip compile -q --python-version 3.10 --python-platform aarch64-manylinux_2_35 \
	    --only-binary :all: --extra device --extra serve --extra telemetry --extra tensorrt --no-annotate --no-header pyproject.toml \
	    | grep -v '^cuda-bindings' ) > constraints-jp62.txt
