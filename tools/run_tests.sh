#!/usr/bin/env bash
# Set-up, ruff and the whole test suite. Arguments go to pytest, for example
#   bash tools/run_tests.sh tests/test_models -x
set -euo pipefail
. "$(dirname "$0")/misc/setup_env.sh"
ruff check projects tools tests
python -m pytest "$@"
