#!/usr/bin/env bash
# Make .venv with everything the project needs, or reuse it.
# Source it: it leaves the environment activated. PYTHON names the interpreter.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "$PYTHON is missing or older than 3.10: set PYTHON=/path/to/python3.10+" >&2
    exit 1
fi
# What was installed is known by the text of what asks for it.
stamp=.venv/installed_$(cat setup.cfg requirements/{runtime,mminstall,tests}.txt | cksum | cut -d' ' -f1)
if [ ! -f "$stamp" ]; then
    echo "Installing into .venv; the first time takes a few minutes." >&2
    # Half an environment stays behind where the venv package is missing.
    [ -x .venv/bin/pip ] || "$PYTHON" -m venv --clear .venv
    .venv/bin/python -m pip install -q --upgrade pip >&2
    .venv/bin/python -m pip install -q --progress-bar off -r requirements/mminstall.txt \
        -r requirements/tests.txt -e . >&2
    rm -f .venv/installed_*
    touch "$stamp"
fi
. .venv/bin/activate
