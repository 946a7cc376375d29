# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CRIS as ONNX graphs.

Shapes: B images of H x W pixels, E expressions of L tokens. B and E are free
in the graphs; H, W and L are those of the config.
"""
import copy
import os
import warnings

import torch
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.utils import digit_version, mkdir_or_exist
from torch import Tensor, nn

from cris.datasets.tokenizer import tokenize
from cris.models.adapters import merge_adapters
from cris.models.cris import fold_batch_norm
from cris.models.fast_cpu import FoldedProjector

from .files import GRAPHS, PARTS, graph_file
from .runtime import ExportedCRIS, open_graph, optional_package

_OPSET = 20  # the first whose Resize and Col2Im are sufficient
# Kernels add in different orders; relative to the largest output.
_TOLERANCE = 1e-4


class _Graph(nn.Module):
    """One of GRAPHS as a module, which torch.onnx needs."""

    def __init__(self, model: nn.Module, graph: str):
        super().__init__()
        self.model = model
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if self.graph == 'image_encoder':
            return model.encode_image(*inputs)
        if self.graph == 'text_encoder':
            return model.encode_text(*inputs)
        if self.graph == 'decoder':
            answer = model.decode(inputs[:3], *inputs[3:])
        else:
            images, tokens, image_index = inputs
            answer = model.decode(
                model.encode_image(images), *model.encode_text(tokens), tokens,
                image_index)
        return tuple(x for x in answer if x is not None)


def _outputs(model: nn.Module, graph: str) -> list[str]:
    outputs = GRAPHS[graph][1]
    exists = outputs == ['logits'] and model.decode_head.existence is not None
    return outputs + ['existence'] if exists else outputs


def export_onnx(model: nn.Module, folder: str, fused: bool = True) -> float:
    """Write a model as ONNX and compare the graphs with PyTorch.

    Args:
        model (nn.Module): A CRIS from :func:`cris.init_model`, with its
            config as ``cfg``; it is not changed.
        folder (str): For ``image_encoder.onnx``, ``text_encoder.onnx``,
            ``decoder.onnx`` and ``cris.json``.
        fused (bool): Also write ``cris.onnx``, the three in one graph.

    Returns:
        float: The largest difference between an output of a graph and
        PyTorch's, relative to the largest output.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed, or
            torch is older than 2.6.
        RuntimeError: If the outputs of a graph differ from PyTorch's.
    """
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        optional_package(package)
    if digit_version(torch.__version__) < digit_version('2.6'):
        raise ImportError('the export needs torch >= 2.6, but '
                          f'{torch.__version__} is installed')
    mkdir_or_exist(folder)
    cfg = model.cfg
    model = _exportable(model)
    size = cfg.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    dump(_describe(model, cfg, size), os.path.join(folder, 'cris.json'),
         indent=2)
    graphs = (*PARTS, 'cris') if fused else PARTS
    values = _make_values(model, size, cfg.context_length, (2, 3))
    for graph in graphs:
        _export(model, graph, values, graph_file(folder, graph))
    worst = 0.
    for counts in ((1, 1), (1, 7), (3, 5)):
        values = _make_values(model, size, cfg.context_length, counts)
        for graph in graphs:
            inputs, outputs = GRAPHS[graph][0], _outputs(model, graph)
            path = graph_file(folder, graph)
            found = open_graph(path)({k: values[k].numpy() for k in inputs})
            for output, name in zip(found, outputs, strict=True):
                worst = max(worst, _difference(
                    torch.from_numpy(output), values[name], path))
    logits = ExportedCRIS(folder).predict_logits(
        *(values[k] for k in GRAPHS['cris'][0]))
    return max(worst, _difference(logits, values['logits'], folder))


def _exportable(model: nn.Module) -> nn.Module:
    """A copy on the CPU in fp32, adapters merged, batch norm folded."""
    model = copy.deepcopy(model).cpu().float().eval()
    merge_adapters(model)
    fold_batch_norm(model)
    # ONNX fixes the number of groups of a convolution, but the number of
    # expressions has to vary.
    head = model.decode_head
    head.projector = FoldedProjector(head.projector)
    return model.requires_grad_(False)


@torch.no_grad()
def _make_values(model: nn.Module, size: tuple[int, int], context_length: int,
                 counts: tuple[int, int]) -> dict[str, Tensor]:
    """Inputs and outputs of all graphs, for B images and E expressions."""
    images, expressions = counts
    sentences = [' '.join(['the red thing on the left'] * (k % 4 + 1))
                 for k in range(expressions)]  # of several lengths
    values = dict(
        images=torch.randn(
            images, 3, *size, generator=torch.Generator().manual_seed(0)),
        tokens=tokenize(sentences, context_length),
        image_index=torch.arange(expressions) % images)
    for graph, (inputs, _) in GRAPHS.items():
        made = _Graph(model, graph)(*(values[name] for name in inputs))
        values.update(zip(_outputs(model, graph), made, strict=True))
    return values


def _export(model: nn.Module, graph: str, values: dict[str, Tensor],
            path: str) -> None:
    inputs, outputs = GRAPHS[graph][0], _outputs(model, graph)
    images, expressions = (torch.export.Dim(name) for name in 'BE')
    of_images = ('images', 'p3', 'p4', 'p5')
    shapes = [{0: images if n in of_images else expressions} for n in inputs]
    num_bytes = sum(w.numel() * w.element_size() for w in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # names of axes are used repeatedly
        torch.onnx.export(
            _Graph(model, graph), tuple(values[name] for name in inputs), path,
            input_names=inputs, output_names=outputs,
            dynamic_shapes=(tuple(shapes), ), opset_version=_OPSET,
            dynamo=True, verbose=False,
            # protobuf is limited to 2 GB per file.
            external_data=num_bytes > 1.8e9)


def _difference(output: Tensor, expected: Tensor, path: str) -> float:
    share = float((output - expected).abs().max() / expected.abs().max())
    if not share <= _TOLERANCE:
        raise RuntimeError(
            f'{path} cannot be used: with a batch of {len(expected)}, its '
            f"outputs differ from PyTorch's by {share:.1e} of the largest "
            f'({_TOLERANCE:.0e} is allowed)')
    return share


def _describe(model: nn.Module, cfg: Config, size: tuple[int, int]) -> dict:
    head = model.decode_head
    pipeline = cfg.test_dataloader.dataset.pipeline
    (letterbox, ) = (t for t in pipeline if t['type'] == 'Letterbox')
    preprocessor = cfg.model.data_preprocessor
    return dict(
        config=os.path.basename(cfg.filename or ''),
        image_size=list(size),
        context_length=cfg.context_length,
        border_value=[float(v) for v in letterbox['border_value']],
        mean=[float(v) for v in preprocessor['mean']],
        std=[float(v) for v in preprocessor['std']],
        threshold=float(head.threshold),
        existence_threshold=(
            None if head.existence is None else head.existence_threshold),
        calibration=head.calibration,
        align_corners=bool(head.align_corners),
        logit_stride=model.logit_stride,
        opset=_OPSET,
        torch=torch.__version__)
