#!/usr/bin/env bash
# Try this project on a machine's GPUs and measure it, from a fresh clone on:
#   bash tools/gpu_check.sh [--minutes 10] [--out work_dirs/gpu_check]
# Writes check.json, table.md and check.log, and prints the table. Without a
# GPU it is a small, quick run on the CPU. Exit status 1: something failed.
set -euo pipefail
export GPU_CHECK_FROM=$PWD
. "$(dirname "$0")/misc/setup_env.sh"
exec python tools/misc/gpu_check.py "$@"
