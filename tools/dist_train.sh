#!/usr/bin/env bash
# bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several nodes: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT. PYTHON names the
# interpreter whose torchrun is used. With MAX_RESTARTS=N a group that has lost
# a process starts again, up to N times, from its last checkpoint.
set -euo pipefail
config=${1:?config file} gpus=${2:?processes per node}
addr=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-29500} restarts=${MAX_RESTARTS:-0}
rendezvous=(--node_rank="${NODE_RANK:-0}" --master_addr="$addr" --master_port="$port")
resume=()
if [ "$restarts" -gt 0 ]; then
    # The rendezvous that torchrun recommends for groups that come back.
    rendezvous=(--rdzv_backend=c10d --rdzv_endpoint="$addr:$port" --rdzv_id="$port" --max_restarts="$restarts")
    resume=(--resume)
fi
# exec: a signal to this script must reach torchrun.
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${NNODES:-1}" "${rendezvous[@]}" --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch ${resume[@]+"${resume[@]}"} "${@:3}"
