#!/usr/bin/env bash
# Makes .venv with edgekit in it. Usage: scripts/setup.sh [EXTRA[,EXTRA...]] [GROUP]
# GROUP is a dependency group of pyproject.toml.
#   scripts/setup.sh host                the pipeline (no torch)
#   scripts/setup.sh host,calibrate,serve,bench,trt-check dev  what the tests need
# PYTHON chooses the interpreter (default: the newest python3.11+ on PATH).
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-host}
group=${2:-}

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.12 python3.13 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

python=$(find_python) || die "needs Python 3.11, 3.12 or 3.13 (Debian 12, Ubuntu 24.04 or newer); set PYTHON to one"

if [ ! -x .venv/bin/python ]; then
    # Debian and Ubuntu ship ensurepip in a package of its own.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        sudo=$([ "$(id -u)" = 0 ] || echo sudo)
        echo "setup: installing python$minor-venv" >&2
        $sudo apt-get update -qq && $sudo apt-get install -y -qq "python$minor-venv" >/dev/null \
            || die "could not install python$minor-venv; install it and run this again"
    fi
    "$python" -m venv .venv
fi

echo "setup: installing edgekit[$extras]${group:+ and $group} into .venv" >&2
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
case ",$extras," in
    *,calibrate,*)
        # The CPU build is enough for the tests; PyPI's default drags in CUDA. Where an index of CPU
        # builds is set up (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL), this exact pin takes it.
        "${pip[@]}" -c constraints.txt torch
        ;;
esac
"${pip[@]}" -c constraints.txt -e ".[$extras]"
if [ -n "$group" ]; then
    # pip takes --group from 25.1 on; Debian 12 has 23.
    read_group='import sys, tomllib
groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]
print(*groups.get(sys.argv[1], ()), sep="\n")'
    names=$(.venv/bin/python -c "$read_group" "$group")
    [ -n "$names" ] || die "pyproject.toml has no dependency group $group"
    mapfile -t packages <<<"$names"
    "${pip[@]}" -c constraints.txt "${packages[@]}"
fi
