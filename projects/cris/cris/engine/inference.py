# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import is_model_wrapper
from torch import nn

from cris.models.fast_cpu import use_onednn

from .precision import before_torch_2_4

_DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
PRECISIONS = tuple(_DTYPES)


def optimize_for_inference(model: nn.Module,
                           precision: str = 'fp32',
                           compile: bool = False) -> nn.Module:
    """Make a trained model as fast as its device allows, in place.

    Batch normalisation is folded into the convolutions, weights are ordered
    channels last and cast once; logits stay in fp32. The model can no longer
    be trained or saved.

    Args:
        model (nn.Module): A CRIS on its device, with its weights, or a
            wrapper of it for several ranks.
        precision (str): ``'fp32'``, whose results differ by rounding alone,
            ``'bf16'`` or, on a GPU, ``'fp16'``. Defaults to ``'fp32'``.
        compile (bool): Use torch.compile: the first calls take minutes, and
            a further one at each new size of the input. Defaults to False.

    Returns:
        nn.Module: The model itself, in eval mode.

    Raises:
        ValueError: If the precision is unknown, or the device or its torch
            does not have it.
    """
    if is_model_wrapper(model):
        optimize_for_inference(model.module, precision, compile)
        return model
    device = next(model.parameters()).device.type
    if precision not in _DTYPES:
        raise ValueError(f'precision={precision!r} must be one of '
                         f'{", ".join(_DTYPES)}')
    if precision == 'fp16' and device == 'cpu':
        raise ValueError("precision='fp16' needs a GPU: take 'bf16'")
    if precision == 'bf16' and device == 'cpu' and before_torch_2_4():
        raise ValueError("precision='bf16' needs torch >= 2.4 on a CPU, here "
                         f'is {torch.__version__}')
    dtype = _DTYPES[precision]
    fuse_conv_bn(model.eval())
    model.to(memory_format=torch.channels_last)
    if precision != 'fp32':
        _cast_products(model, dtype)
    elif device == 'cpu' and not compile:
        use_onednn(model)
    if compile:
        model.encode_image = torch.compile(model.encode_image)
        model.decode = torch.compile(model.decode, dynamic=True)
    if precision != 'fp32':
        for name in ('encode_image', 'answer'):
            in_precision = torch.autocast(device, dtype)
            setattr(model, name, in_precision(getattr(model, name)))
    return model


def _cast_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what autocast would cast at every call."""
    projector = model.decode_head.projector
    # The projector's last products are taken in fp32.
    kept = {projector.pixel_proj, getattr(projector, 'kernel_proj', None)}
    for module in model.modules():
        if module not in kept and isinstance(
                module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            module.to(dtype)
