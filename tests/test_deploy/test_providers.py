# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import pytest

from cris.deploy.runtime import onnxruntime_providers


@pytest.mark.parametrize('rank, device', [(None, 0), ('3', 3)])
def test_each_rank_has_its_own_gpu(monkeypatch, rank, device):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if rank is not None:
        monkeypatch.setenv('LOCAL_RANK', rank)
    cpu, cuda = 'CPUExecutionProvider', 'CUDAExecutionProvider'
    assert onnxruntime_providers([cpu]) == [(cpu, {})]
    (name, settings), last = onnxruntime_providers(['Other', cuda, cpu])
    assert name == cuda and last == (cpu, {})
    assert settings['device_id'] == device
