#!/usr/bin/env bash
# Makes an environment with Optimum for `edgekit build --exporter optimum`. Usage: scripts/optimum.sh DIR
#   scripts/optimum.sh .venv-optimum && export EDGEKIT_OPTIMUM_PYTHON=$PWD/.venv-optimum/bin/python
# PYTHON chooses the interpreter (default: the one of .venv, else python3).
set -euo pipefail
die() { printf 'optimum: %s\n' "$*" >&2; exit 1; }

[ $# = 1 ] || die "usage: scripts/optimum.sh DIR"
mkdir -p "$1" && folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
own=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
python=${PYTHON:-$own}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "needs Python 3.10 or newer; set PYTHON to one"
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder" \
    || die "could not make an environment; on Debian and Ubuntu install python3-venv"

pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch on its own first: the pin takes a CPU build where an index of them is set up
# (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL); PyPI's default drags in CUDA.
"${pip[@]}" -c constraints.txt torch
"${pip[@]}" -r requirements-optimum.txt
"$folder/bin/python" -c 'import optimum.exporters.onnx' || die "Optimum does not start in $folder"
echo "EDGEKIT_OPTIMUM_PYTHON=$folder/bin/python"
