# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import torch
from mmengine.model import is_model_wrapper
from torch import nn

from cris.models.adapters import merge_adapters
from cris.models.cris import fold_batch_norm
from cris.models.fast_cpu import optimize_for_cpu_inference

from .precision import before_torch_2_4

_DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
PRECISIONS = tuple(_DTYPES)


def optimize_for_inference(model: nn.Module, precision: str = 'fp32',
                           compile: bool = False) -> nn.Module:
    """Make a trained model as fast as its device allows, in place.

    Adapters are merged, batch norm is folded into the convolutions, weights
    are ordered channels last and cast once; logits stay in fp32. On a CPU,
    faster modules are swapped in. The model can no longer be trained or saved.

    Args:
        model (nn.Module): A CRIS on its device, with its weights, or a
            wrapper of it for several ranks.
        precision (str): ``'fp32'``, whose results differ by rounding alone,
            ``'bf16'`` or, on a GPU, ``'fp16'``.
        compile (bool): Use torch.compile. The first call, and each new input
            size, takes minutes.

    Returns:
        nn.Module: The model itself, in eval mode.

    Raises:
        ValueError: If the precision is unknown, or the device or this
            version of torch does not support it.
    """
    if is_model_wrapper(model):
        optimize_for_inference(model.module, precision, compile)
        return model
    device = next(model.parameters()).device.type
    if precision not in _DTYPES:
        raise ValueError(f'precision={precision!r} must be one of '
                         f'{", ".join(_DTYPES)}')
    if precision == 'fp16' and device == 'cpu':
        raise ValueError("precision='fp16' needs a GPU: use 'bf16'")
    if precision == 'bf16' and device == 'cpu' and before_torch_2_4():
        raise ValueError("precision='bf16' needs torch >= 2.4 on a CPU, found "
                         f'{torch.__version__}')
    dtype = _DTYPES[precision]
    merge_adapters(model.eval())
    fold_batch_norm(model)
    model.to(memory_format=torch.channels_last)
    if precision != 'fp32':
        model.inference_dtype = dtype
        _cast_products(model, dtype)
    if device == 'cpu':
        optimize_for_cpu_inference(model, dtype)
    if compile:
        compile_parts(model)
    return model


def compile_parts(model: nn.Module, **options) -> None:
    """Let torch.compile translate the parts of a CRIS at their first call.

    Args:
        model (nn.Module): A CRIS, also one that a wrapper for several ranks
            holds already.
        **options: Of torch.compile, e.g. ``mode='reduce-overhead'``.
    """
    model.backbone.compile(**options)  # forward(), the image encoder
    # The number of expressions varies.
    model.backbone.text.transformer.compile(**{'dynamic': True, **options})
    model.decode_head.compile(**{'dynamic': True, **options})


def _cast_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast once the weights that autocast would cast at every call."""
    projector = model.decode_head.projector
    # Their products are computed in fp32.
    kept = {projector.pixel_proj, getattr(projector, 'kernel_proj', None)}
    if model.decode_head.existence is not None:
        kept.update(model.decode_head.existence.modules())
    for module in model.modules():
        if module not in kept and isinstance(
                module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            module.to(dtype)
