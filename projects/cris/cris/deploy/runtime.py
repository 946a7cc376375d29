# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Exported graphs in onnxruntime or OpenVINO.

Shapes: B images of H x W pixels, E expressions of L tokens.
"""
import importlib
import os
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from mmengine.config import Config
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from torch import Tensor, nn

from cris.models.cris import CRIS, ImageFeatures
from cris.models.head import Answer

from .files import GRAPHS, PARTS, graph_file, read_description

Arrays = dict[str, np.ndarray]
Session = Callable[[Arrays], list[np.ndarray]]


def optional_package(name: str) -> ModuleType:
    """Import a package of requirements/deploy.txt.

    Raises:
        ImportError: If it is not installed, with the command to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is missing ({error}): '
                          'pip install -r requirements/deploy.txt') from error


def onnxruntime_providers(available: list[str]) -> list[tuple[str, dict]]:
    """Of the available providers those to use, with their settings.

    A GPU is that of LOCAL_RANK, so that each process has its own.
    """
    gpu = int(os.environ.get('LOCAL_RANK', 0))
    providers = [
        ('CUDAExecutionProvider', dict(device_id=gpu, use_tf32=0)),  # fp32
        ('CPUExecutionProvider', {})
    ]
    return [p for p in providers if p[0] in available]


def _open_onnxruntime(path: str, precision: str, threads: int) -> Session:
    ort = optional_package('onnxruntime')
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        path, options,
        providers=onnxruntime_providers(ort.get_available_providers()))
    return lambda feeds: session.run(None, feeds)


def _open_openvino(path: str, precision: str, threads: int) -> Session:
    openvino = optional_package('openvino')
    compiled = openvino.Core().compile_model(
        path, 'CPU', {
            'INFERENCE_NUM_THREADS': threads,
            'INFERENCE_PRECISION_HINT': precision.replace('fp', 'f'),
            'PERFORMANCE_HINT': 'LATENCY'
        })
    count = len(compiled.outputs)

    def run(feeds: Arrays) -> list[np.ndarray]:
        made = compiled(feeds)
        # Copies, because the next call reuses the memory.
        return [made[k].astype(np.float32) for k in range(count)]

    return run


_OPEN = dict(onnxruntime=_open_onnxruntime, openvino=_open_openvino)
#: Backends and their precisions.
BACKENDS = dict(onnxruntime=('fp32', ), openvino=('fp32', 'bf16'))


def open_graph(path: str, backend: str = 'onnxruntime',
               precision: str = 'fp32',
               threads: int | None = None) -> Session:
    """A function from the inputs of a graph, by name, to its outputs.

    Args:
        path (str): File of the graph.
        backend (str): One of :data:`BACKENDS`.
        precision (str): 'fp32' or, with OpenVINO, 'bf16'.
        threads (int, optional): Defaults to torch's number.

    Raises:
        ImportError: If the backend is not installed.
        ValueError: If the backend is unknown, lacks the precision, or cannot
            read the graph.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r} must be one of '
                         f'{", ".join(BACKENDS)}')
    if precision not in BACKENDS[backend]:
        raise ValueError(f'precision={precision!r} of {backend} must be one '
                         f'of {", ".join(BACKENDS[backend])}')
    try:
        return _OPEN[backend](path, precision,
                              threads or torch.get_num_threads())
    except ImportError:
        raise
    except Exception as error:  # each backend has its own errors
        raise ValueError(
            f'{backend} cannot use {path}: {str(error)[:300]}') from error


@MODELS.register_module()
class ExportedCRIS(CRIS):
    """A CRIS whose encoders and decoder are exported graphs.

    It can stand in for the model it was exported from: in tools/test.py, in
    :class:`cris.CRISInferencer` and through ``predict_logits``, with tensors
    on the CPU. It cannot be trained.

    >>> model = ExportedCRIS('exported', backend='openvino')
    >>> cris.CRISInferencer(model)('street.jpg', 'leftmost car')

    Args:
        folder (str): From :func:`cris.deploy.export_onnx`.
        backend, precision, threads: As of :func:`open_graph`.
        data_preprocessor (dict, optional): Defaults to that of the exported
            model.

    Raises:
        FileNotFoundError: If the folder lacks a file.
        ImportError, ValueError: As of :func:`open_graph`; also if the
            description of the model is damaged.
    """
    expressions_at_once = 4  # as in fp32 on a CPU

    def __init__(self, folder: str, backend: str = 'onnxruntime',
                 precision: str = 'fp32', threads: int | None = None,
                 data_preprocessor: dict | None = None):
        about = read_description(folder)
        data_preprocessor = data_preprocessor or dict(
            type='SegDataPreProcessor', mean=about['mean'], std=about['std'],
            bgr_to_rgb=True, size_divisor=1, seg_pad_val=0)
        # CRIS's own constructor would build the parts of a model.
        BaseSegmentor.__init__(self, MODELS.build(data_preprocessor))
        self.cfg = _make_config(about)
        self.image_size = tuple(about['image_size'])
        self.context_length = about['context_length']
        self.logit_stride = about['logit_stride']
        # What CRIS and the inferencer read. Descriptions that are older than
        # the classifier of existence do not mention it.
        exists = about.get('existence_threshold')
        self.decode_head = SimpleNamespace(
            threshold=about['threshold'], align_corners=about['align_corners'],
            existence=None if exists is None else 'decoder.onnx',
            existence_threshold=exists,
            calibration=about.get('calibration'))
        # DistributedDataParallel, in a test on several ranks, requires one.
        self.unused = nn.Parameter(torch.zeros(1))
        self._sessions = {
            part: open_graph(graph_file(folder, part), backend, precision,
                             threads) for part in PARTS
        }
        self.eval()

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """See :meth:`CRIS.encode_image`; H and W are those of the export."""
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f'images of {tuple(images.shape[-2:])}, but the model was '
                f'exported for {self.image_size} (height, width): letterbox '
                'them to that size, or export again')
        return self._run('image_encoder', images)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`CRIS.encode_text`; L is that of the export."""
        if tokens.shape[1] != self.context_length:
            raise ValueError(
                f'expressions of {tokens.shape[1]} tokens, but the model was '
                f'exported for {self.context_length}: tokenize with '
                f'context_length={self.context_length}')
        return self._run('text_encoder', tokens)

    def decode(self, features: ImageFeatures, words: Tensor, sentence: Tensor,
               tokens: Tensor, image_index: Tensor) -> Answer:
        """See :meth:`CRIS.decode`."""
        return Answer(*self._run('decoder', *features, words, sentence, tokens,
                                 image_index))

    def _run(self, part: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = [np.ascontiguousarray(x.detach().cpu()) for x in inputs]
        feeds = dict(zip(GRAPHS[part][0], arrays, strict=True))
        return tuple(torch.from_numpy(x) for x in self._sessions[part](feeds))

    def train(self, mode: bool = True) -> 'ExportedCRIS':
        if mode:
            raise ValueError('an exported model cannot be trained')
        return super().train(mode)


def _make_config(about: dict) -> Config:
    """The part of a config that CRISInferencer needs."""
    size, length = about['image_size'], about['context_length']
    pipeline = [
        dict(type='Letterbox', size=size, border_value=about['border_value']),
        dict(type='TokenizeExpressions', context_length=length),
        dict(type='PackReferInputs')
    ]
    return Config(dict(
        test_dataloader=dict(dataset=dict(pipeline=pipeline)),
        image_size=size, context_length=length))
