#!/usr/bin/env bash
# Sets up and passes the tests: lint, types, architecture, unit and integration tests.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh host,calibrate,trt-check dev
bin=.venv/bin
"$bin"/ruff format --check .
"$bin"/ruff check .
"$bin"/mypy
"$bin"/lint-imports
exec "$bin"/python -m pytest -m "not slow" "$@"
