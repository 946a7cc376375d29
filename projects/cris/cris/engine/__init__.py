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
    use_bfloat16,
)

__all__ = [
    'BFloat16OptimWrapper', 'avoid_fused', 'compare_weights',
    'init_cpu_process_group', 'load_config', 'load_weights',
    'read_checkpoint', 'state_dict_of', 'use_bfloat16', 'use_safe_loader'
]
