# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Exported graphs in onnxruntime or OpenVINO.

Shapes: B images of H x W pixels, E expressions of L tokens.
"""
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.config import Config
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from torch import Tensor, nn

from cris.models.cris import CRIS, ImageFeatures

from .files import (
    GRAPHS,
    PARTS,
    graph_file,
    optional_package,
    read_description,
)

Arrays = dict[str, np.ndarray]
Session = Callable[[Arrays], list[np.ndarray]]


def _open_onnxruntime(path: str, precision: str, threads: int) -> Session:
    ort = optional_package('onnxruntime')
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # TF32 would not be fp32.
    providers = dict(
        CUDAExecutionProvider=dict(use_tf32=0), CPUExecutionProvider={})
    available = ort.get_available_providers()
    session = ort.InferenceSession(
        path,
        options,
        providers=[item for item in providers.items() if item[0] in available])
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


def open_graph(path: str,
               backend: str = 'onnxruntime',
               precision: str = 'fp32',
               threads: int | None = None) -> Session:
    """A function from the inputs of a graph, by name, to its outputs.

    Args:
        path (str): File of the graph.
        backend (str): One of :data:`BACKENDS`. Defaults to 'onnxruntime'.
        precision (str): 'fp32' or, with OpenVINO, 'bf16'. Defaults to 'fp32'.
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
        backend (str): 'onnxruntime' or 'openvino'. Defaults to
            'onnxruntime'.
        precision (str): 'fp32' or, with OpenVINO, 'bf16'. Defaults to 'fp32'.
        threads (int, optional): Defaults to torch's number.
        data_preprocessor (dict, optional): None means that of the exported
            model.

    Raises:
        FileNotFoundError: If the folder lacks a file.
        ImportError: If the backend is not installed.
        ValueError: If the backend is unknown, lacks the precision, or cannot
            read a graph.
    """
    expressions_at_once = 4  # as in fp32 on a CPU

    def __init__(self,
                 folder: str,
                 backend: str = 'onnxruntime',
                 precision: str = 'fp32',
                 threads: int | None = None,
                 data_preprocessor: dict | None = None):
        about = read_description(folder)
        if data_preprocessor is None:
            data_preprocessor = dict(
                type='SegDataPreProcessor',
                mean=about['mean'],
                std=about['std'],
                bgr_to_rgb=True,
                size_divisor=1,
                seg_pad_val=0)
        if isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        # CRIS's own constructor would build the parts of a model.
        BaseSegmentor.__init__(self, data_preprocessor=data_preprocessor)
        self.cfg = _make_config(about)
        self.image_size = tuple(about['image_size'])
        self.context_length = about['context_length']
        # What CRIS.original_size and the inferencer read.
        self.decode_head = SimpleNamespace(
            threshold=about['threshold'], align_corners=about['align_corners'])
        # DistributedDataParallel, in a test on several ranks, requires one.
        self.unused = nn.Parameter(torch.zeros(1))
        self._sessions = {
            part: open_graph(
                graph_file(folder, part), backend, precision, threads)
            for part in PARTS
        }
        self.eval()

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """See :meth:`CRIS.encode_image`; H and W are those of the export."""
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f'images of {tuple(images.shape[-2:])}, but the model was '
                f'exported for {self.image_size} (height, width): letterbox '
                'them to that size, or export again')
        return self._run('image_encoder', images=images)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`CRIS.encode_text`; L is that of the export."""
        if tokens.shape[1] != self.context_length:
            raise ValueError(
                f'expressions of {tokens.shape[1]} tokens, but the model was '
                f'exported for {self.context_length}: tokenize with '
                f'context_length={self.context_length}')
        return self._run('text_encoder', tokens=tokens)

    def decode(self, features: ImageFeatures, words: Tensor, sentence: Tensor,
               tokens: Tensor, image_index: Tensor) -> Tensor:
        """See :meth:`CRIS.decode`."""
        p3, p4, p5 = features
        (logits, ) = self._run(
            'decoder',
            p3=p3,
            p4=p4,
            p5=p5,
            words=words,
            sentence=sentence,
            tokens=tokens,
            image_index=image_index)
        return logits

    def _run(self, part: str, **tensors: Tensor) -> tuple[Tensor, ...]:
        feeds = {
            name: np.ascontiguousarray(tensors[name].detach().cpu().numpy())
            for name in GRAPHS[part][0]
        }
        return tuple(torch.from_numpy(x) for x in self._sessions[part](feeds))

    def train(self, mode: bool = True) -> 'ExportedCRIS':
        if mode:
            raise ValueError('an exported model cannot be trained')
        return super().train(mode)


def _make_config(about: dict) -> Config:
    """The part of a config that CRISInferencer needs."""
    size, length = about['image_size'], about['context_length']
    pipeline = [
        dict(
            type='Letterbox', size=size, border_value=about['border_value']),
        dict(type='TokenizeExpressions', context_length=length),
        dict(type='PackReferInputs')
    ]
    return Config(
        dict(
            test_dataloader=dict(dataset=dict(pipeline=pipeline)),
            image_size=size,
            context_length=length))
