#!/usr/bin/env bash
# Sets up and passes the tests: lint, types, architecture, unit and integration tests.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh host,calibrate dev
bin=.venv/bin
"$bin"/ruff format --check .
"$bin"/ruff check .
scripts/types.sh
"$bin"/lint-imports
exec "$bin"/python -m pytest -m "not slow" "$@"
