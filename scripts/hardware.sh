#!/usr/bin/env bash
# What a person with an Orin runs (docs/hardware.md). Usage: scripts/hardware.sh [BUNDLE] [OPTION...]
# Options are those of tests/hardware/hardware.py. Makes .venv-device where there is none: TensorRT's
# Python module comes with JetPack, so that environment sees the system's packages.
# EDGEKIT_PYTHON names another interpreter that has edgekit, and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${EDGEKIT_PYTHON:-.venv-device/bin/python}
if [ -z "${EDGEKIT_PYTHON:-}" ] && ! [ -x "$python" ]; then
    python3 -m venv --system-site-packages .venv-device || {
        echo "hardware: needs python3-venv (sudo apt install python3-venv)" >&2
        exit 1
    }
    # The versions of jetson.Dockerfile; JetPack 6.2 (L4T R36) has CUDA 12 and Python 3.10.
    bindings=13.2.0 pins=constraints.txt
    ! grep -qs '^# R36 ' /etc/nv_tegra_release || bindings=12.9.10 pins=constraints-jp62.txt
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$pins" \
        -e '.[device,tensorrt]' "cuda-bindings==$bindings"
fi
export PYTHONPATH="$PWD:$PWD/tests/bench${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" tests/hardware/hardware.py "$@"
