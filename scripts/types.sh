#!/usr/bin/env bash
# Checks types twice: for the Pythons that the scripts install into, and for JetPack 6.2's 3.10, where a module, a function
# or a syntax of 3.11 would fail only on the device. NumPy's stubs are not for 3.10 any more: what they make Any is let be there.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/mypy
exec .venv/bin/mypy --python-version 3.10 --disable-error-code no-any-return -p edgekit -p device -p ota
