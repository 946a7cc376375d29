#!/usr/bin/env bash
# Set-up, ruff and the whole test suite. Arguments go to pytest, for example
#   bash tools/run_tests.sh tests/test_models -x
set -euo pipefail
. "$(dirname "$0")/misc/setup_env.sh"
ruff check projects tools tests
# One thread each: the processes share the cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist loadfile "$@"
