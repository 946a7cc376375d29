# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""INT8 by onnxruntime's post-training quantisation."""
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from mmengine.utils import mkdir_or_exist
from torch import Tensor

from .files import (
    GRAPHS,
    PARTS,
    graph_file,
    optional_package,
    read_description,
    write_description,
)
from .runtime import ExportedCRIS

# The text encoder is small and suffers most.
_QUANTIZED = ('image_encoder', 'decoder')


class _Feeds:
    """onnxruntime's CalibrationDataReader of what was recorded."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]):
        self._feeds: Iterator = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


class _Recorder(ExportedCRIS):
    """Keeps what goes into the graphs."""

    def __init__(self, folder: str):
        super().__init__(folder)
        self.feeds: dict[str, list] = {part: [] for part in PARTS}

    def _run(self, part, **tensors):
        self.feeds[part].append(
            {name: tensors[name].numpy() for name in GRAPHS[part][0]})
        return super()._run(part, **tensors)


@torch.inference_mode()
def quantize_onnx(folder: str, out: str,
                  samples: Iterable[dict[str, Tensor]]) -> None:
    """Quantise the convolutions and products of an exported model.

    Weights are rounded to 8 bits per channel, activations to the ranges that
    the samples show; the text encoder stays as it is.

    Args:
        folder (str): By :func:`cris.deploy.export_onnx`.
        out (str): Folder of the new model, to be used in the same way.
        samples (Iterable[dict]): Some ten pictures with their expressions:
            ``images (1, 3, H, W)``, normalised, and ``tokens (K, L)``.

    Raises:
        ImportError: If onnxruntime or onnx is not installed.
        ValueError: If there is no sample, out is folder, or a graph has its
            weights in a file of their own, as those of 2 GB have.
    """
    optional_package('onnx')
    ort = optional_package('onnxruntime.quantization')
    if os.path.abspath(folder) == os.path.abspath(out):
        raise ValueError(f'{out} is the model itself: name another folder')
    for part in PARTS:
        if os.path.exists(f'{graph_file(folder, part)}.data'):
            raise ValueError(f'{graph_file(folder, part)} has its weights in '
                             'a file of their own, for they are large: that '
                             'cannot be quantized here')
    recorder = _Recorder(folder)
    for sample in samples:
        tokens = sample['tokens']
        recorder.predict_logits(sample['images'], tokens,
                                torch.zeros(len(tokens), dtype=torch.long))
    if not recorder.feeds['decoder']:
        raise ValueError('there are no samples to find the ranges with')
    mkdir_or_exist(out)
    for part in PARTS:
        source, target = graph_file(folder, part), graph_file(out, part)
        if part not in _QUANTIZED:
            shutil.copyfile(source, target)
            continue
        with tempfile.TemporaryDirectory() as temporary:
            prepared = os.path.join(temporary, 'prepared.onnx')
            ort.quant_pre_process(source, prepared, skip_symbolic_shape=True)
            ort.quantize_static(
                prepared,
                target,
                _Feeds(recorder.feeds[part]),
                quant_format=ort.QuantFormat.QDQ,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                per_channel=True,
                # 7 bits: the sums of AVX2 would overflow.
                reduce_range=True)
    write_description(out, dict(read_description(folder), precision='int8'))
