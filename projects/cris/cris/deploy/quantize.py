# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""INT8 by onnxruntime's post-training quantization."""
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

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


@torch.inference_mode()
def _record_feeds(model: ExportedCRIS,
                  samples: Iterable[dict[str, Tensor]]) -> list[dict]:
    """Inputs of all graphs, by name, for each sample."""
    feeds = []
    for sample in samples:
        p3, p4, p5 = model.encode_image(sample['images'])
        words, sentence = model.encode_text(sample['tokens'])
        inputs = dict(
            sample,
            p3=p3,
            p4=p4,
            p5=p5,
            words=words,
            sentence=sentence,
            image_index=torch.zeros(len(words), dtype=torch.long))
        feeds.append({name: x.numpy() for name, x in inputs.items()})
    return feeds


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
    feeds = _record_feeds(ExportedCRIS(folder), samples)
    if not feeds:
        raise ValueError('there are no samples to find the ranges with')
    mkdir_or_exist(out)
    for part in PARTS:
        source, target = graph_file(folder, part), graph_file(out, part)
        if part not in _QUANTIZED:
            shutil.copyfile(source, target)
            continue
        inputs = iter([{name: feed[name] for name in GRAPHS[part][0]}
                       for feed in feeds])
        with tempfile.TemporaryDirectory() as temporary:
            prepared = os.path.join(temporary, 'prepared.onnx')
            ort.quant_pre_process(source, prepared, skip_symbolic_shape=True)
            ort.quantize_static(
                prepared,
                target,
                SimpleNamespace(get_next=partial(next, inputs, None)),
                quant_format=ort.QuantFormat.QDQ,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                per_channel=True,
                # onnxruntime has no fast kernels for signed activations.
                activation_type=ort.QuantType.QUInt8,
                # With 8 bits, the sums would overflow on AVX2.
                reduce_range=True)
    write_description(out, read_description(folder))
