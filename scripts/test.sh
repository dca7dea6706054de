#!/usr/bin/env bash
# Sets up and passes the tests: lint, types, architecture, unit and integration tests.
#   scripts/test.sh [PYTEST ARGUMENT...]        set up, then every step
#   scripts/test.sh lint|types                  one step, in the .venv that is there
#   scripts/test.sh test [PYTEST ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin

lint() {
    "$bin"/ruff format --check .
    "$bin"/ruff check .
    "$bin"/lint-imports
}

types() { scripts/types.sh; }

tests() { "$bin"/python -m pytest -m "not slow" "$@"; }

case ${1:-} in
    lint | types) "$1" ;;
    test) tests "${@:2}" ;;
    *)
        scripts/services.sh
        scripts/setup.sh host,calibrate,serve,bench,telemetry,modem,fleet,trt-check dev
        lint
        types
        tests "$@"
        ;;
esac
