#!/usr/bin/env bash
# Make an environment of its own for one family of the OpenMMLab packages and
# one Python, and run the test suite in it. Further arguments go to pytest.
#   bash tools/misc/check_env.sh [onedl|openmmlab] [3.10|3.11|3.12|PATH] ...
# It is made in a temporary folder and removed; VENV=DIR makes it there and
# keeps it. The openmmlab family compiles mmcv: a quarter of an hour.
set -euo pipefail
family=${1:-onedl} version=${2:-3.11}
shift $(($# < 2 ? $# : 2))
for candidate in "$version" "python$version" "$(pyenv prefix "$version" 2>/dev/null || true)/bin/python"; do
    if "$candidate" -c '' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "${python:-}" ]; then
    echo "There is no Python $version: give the path of one." >&2
    exit 1
fi
if [ -z "${VENV:-}" ]; then
    VENV=$(mktemp -d)
    trap 'rm -rf "$VENV"' EXIT
fi
export VENV FAMILY=$family PYTHON=$python
bash "$(dirname "$0")/../run_tests.sh" "$@"
"$VENV/bin/python" - <<'PYTHON'
import platform
from importlib.metadata import distributions

mm = sorted(f'{d.name} {d.version}' for d in distributions()
            if d.name.removeprefix('onedl-') in
            ('mmcv', 'mmengine', 'mmpretrain', 'mmsegmentation', 'torch'))
print(f'passed with Python {platform.python_version()}, {", ".join(mm)}')
PYTHON
