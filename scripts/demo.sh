#!/usr/bin/env bash
# The main job on a fresh machine: build the trained example for the Orin, check it, ask it a question.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh host
out=${1:-out/edgekit-r1-tiny.orin.bundle}
.venv/bin/edgekit build examples/edgekit-r1-tiny --target orin --out "$out"
.venv/bin/edgekit verify "$out"
.venv/bin/edgekit run "$out" "What is 58 + 67?" --temperature 0
