# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .checkpoint import (
    compare_weights,
    load_weights,
    read_checkpoint,
    state_dict_of,
    use_safe_loader,
)
from .config import load_config
from .cpu import (
    BFloat16OptimWrapper,
    avoid_fused,
    init_cpu_process_group,
    reuse_memory,
    use_bfloat16,
)
from .hooks import (
    CheckLossHook,
    DataTimeoutHook,
    ExactResumeHook,
    PreemptionHook,
    SafeCheckpointHook,
    explain_data_errors,
)
from .inference import PRECISIONS, optimize_for_inference
from .latest_checkpoint import latest_checkpoint

__all__ = [
    'PRECISIONS', 'BFloat16OptimWrapper', 'CheckLossHook', 'DataTimeoutHook',
    'ExactResumeHook', 'PreemptionHook', 'SafeCheckpointHook', 'avoid_fused',
    'compare_weights', 'explain_data_errors', 'init_cpu_process_group',
    'latest_checkpoint', 'load_config', 'load_weights',
    'optimize_for_inference', 'read_checkpoint', 'reuse_memory',
    'state_dict_of', 'use_bfloat16', 'use_safe_loader'
]
