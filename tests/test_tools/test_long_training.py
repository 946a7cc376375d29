# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json

import numpy as np
import pytest
from conftest import ReferSet, probed, tool


@pytest.mark.slow
def test_memory_of_10000_steps_is_flat(tmp_path):
    """With an evaluation and a checkpoint every 500."""
    refer_set = ReferSet(tmp_path / 'refer')
    for k in range(996):  # four are there
        refer_set.add_ref(1 + k % 2, [[5, 20, 30, 20, 30, 45]], 'train')
    data = refer_set.write()
    config = probed(tmp_path / 'config.py', f'''
custom_hooks = [dict(type='Probe')]
image_size = 64
model = dict(decode_head=dict(num_layers=1))
train_cfg = dict(max_epochs=20, val_interval=1)
train_dataloader = dict(
    batch_size=2, num_workers=1,
    dataset=dict(data_root={str(data)!r}, num_expressions=1))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root={str(data)!r}))
''')
    tool('train.py', config, '--work-dir', tmp_path)
    memory = np.array(
        json.loads((tmp_path / 'probe_rank0.json').read_text()))[:, 1]
    assert len(memory) == 10000
    steps = np.arange(1000, 10000)  # what is made once has been made
    slope = np.polyfit(steps, memory[1000:], 1)[0] * 1000
    print(f'{memory[999]:.1f} MiB after 1000 steps, {memory[-1]:.1f} after '
          f'10000: {slope:+.2f} MiB per 1000 steps')
    assert slope < 2
