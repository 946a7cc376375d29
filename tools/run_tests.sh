#!/usr/bin/env bash
# Set-up, ruff and the whole test suite. Arguments go to pytest, for example
#   bash tools/run_tests.sh tests/test_models -x
set -euo pipefail
. "$(dirname "$0")/misc/setup_env.sh"
# Without a browser the tests of the web page are skipped, with the reason.
timeout 300 bash tools/misc/get_browser.sh || echo 'No browser for the tests of the web page.' >&2
ruff check projects tools tests demo
# One thread each: the processes share the cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist loadfile "$@"
