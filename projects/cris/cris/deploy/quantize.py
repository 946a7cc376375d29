# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""INT8 by onnxruntime's post-training quantization."""
import os
import shutil
import tempfile
from collections.abc import Iterable

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

# The text encoder is small and loses the most accuracy.
_QUANTIZED = ('image_encoder', 'decoder')


class _Feeds:
    """onnxruntime's CalibrationDataReader for recorded inputs."""

    def __init__(self, feeds: list[dict]):
        self._feeds = iter(feeds)

    def get_next(self) -> dict | None:
        return next(self._feeds, None)


class _Recorder(ExportedCRIS):
    """Keeps the inputs of the graphs."""

    def __init__(self, folder: str):
        super().__init__(folder)
        self.feeds: dict[str, list[dict]] = {part: [] for part in PARTS}

    def _run(self, part: str, **tensors: Tensor) -> tuple[Tensor, ...]:
        self.feeds[part].append(
            {name: tensors[name].numpy() for name in GRAPHS[part][0]})
        return super()._run(part, **tensors)


@torch.inference_mode()
def quantize_onnx(folder: str, out: str,
                  samples: Iterable[dict[str, Tensor]]) -> None:
    """Quantize the convolutions and matrix products of an exported model.

    Weights are rounded to 7 bits per channel, activations to 8 bits in the
    ranges seen on the samples; the text encoder stays in fp32. The speed
    comes from the VNNI or AMX instructions of the processor.

    Args:
        folder (str): From :func:`cris.deploy.export_onnx`.
        out (str): Folder of the new model, which is used in the same way.
        samples (Iterable[dict]): About ten images with their expressions:
            ``images (1, 3, H, W)``, normalised, and ``tokens (K, L)``.

    Raises:
        ImportError: If onnxruntime or onnx is not installed.
        ValueError: If there are no samples, out is folder, or a graph keeps
            its weights in a separate file, as graphs of 2 GB do.
    """
    optional_package('onnx')
    ort = optional_package('onnxruntime.quantization')
    if os.path.abspath(folder) == os.path.abspath(out):
        raise ValueError(f'{out} is the model itself: choose another folder')
    for path in (graph_file(folder, part) for part in PARTS):
        if os.path.exists(f'{path}.data'):
            raise ValueError(f'{path} keeps its weights in a separate file, '
                             'because they are large: quantizing such a graph '
                             'is not supported')
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
                # onnxruntime has no fast kernels for signed activations.
                activation_type=ort.QuantType.QUInt8,
                # With 8 bits, the sums would overflow on AVX2.
                reduce_range=True)
    write_description(out, read_description(folder))
