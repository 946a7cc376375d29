#!/usr/bin/env bash
# Make .venv with everything the project needs, or reuse it.
# Source it: it leaves the environment activated. PYTHON names the interpreter,
# VENV another folder than .venv, FAMILY=openmmlab the upstream packages.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv} FAMILY=${FAMILY:-onedl}
case $FAMILY in
    onedl) packages=requirements/mminstall.txt ;;
    openmmlab) packages=requirements/openmmlab.txt ;;
    *) echo "FAMILY is onedl or openmmlab, not $FAMILY" >&2; exit 1 ;;
esac
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "$PYTHON is missing or older than 3.10: set PYTHON=/path/to/python3.10+" >&2
    exit 1
fi
# What was installed is known by the text of what asks for it.
stamp=$VENV/installed_$(cat setup.cfg requirements/{runtime,tests}.txt $packages | cksum | cut -d' ' -f1)
if [ -f "$VENV/family" ] && [ "$(cat "$VENV/family")" != "$FAMILY" ]; then
    echo "$VENV holds the $(cat "$VENV/family") packages; both families own the same names: set VENV=another folder" >&2
    exit 1
fi
if [ ! -f "$stamp" ]; then
    echo "Installing into $VENV; the first time takes a few minutes." >&2
    # Half an environment stays behind where the venv package is missing.
    [ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv --clear "$VENV"
    echo "$FAMILY" > "$VENV/family"
    install=("$VENV/bin/python" -m pip install -q --progress-bar off)
    "${install[@]}" --upgrade pip >&2
    if [ "$FAMILY" = openmmlab ]; then
        echo "mmcv is compiled: a quarter of an hour on one core." >&2
        "${install[@]}" torch==2.1.2 torchvision==0.16.2 'numpy<2' 'setuptools<81' wheel ninja psutil >&2
        export MMCV_WITH_OPS=1
        install+=(--no-build-isolation)
    fi
    "${install[@]}" -r $packages -r requirements/tests.txt -e . >&2
    rm -f "$VENV"/installed_*
    touch "$stamp"
fi
. "$VENV/bin/activate"
