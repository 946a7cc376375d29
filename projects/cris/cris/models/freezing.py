# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Stages of an image encoder, and parts of a model that are not trained."""
import re

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models import group_parameters
from torch import nn

from .efficientnet_lite import EfficientNetLite0


def is_new(name: str) -> bool:
    """Whether CLIP does not have this weight, so it is always trained."""
    return '.connect.' in name


def stage_of(visual: nn.Module) -> dict[str, int] | None:
    """Stage of each pretrained weight of an image encoder.

    Returns:
        dict[str, int] | None: By the names of the parameters; 0 is the stem.
        A block of a ViT is a stage, the attention pool of CLIP's ResNet the
        fifth. EfficientNet-Lite0 has seven: strides 2, 4, 8, 16, 16, 32, 32.
        None for encoders whose stages are not known.
    """
    names = [name for name, _ in visual.named_parameters()
             if not is_new(name)]
    if isinstance(visual, ModifiedResNet):
        return {name: 5 if name.startswith('attnpool.')
                else _number(r'layer(\d)\.', name, 0) for name in names}
    if isinstance(visual, VisionTransformer):
        block = r'transformer\.resblocks\.(\d+)\.'
        return {name: 1 + _number(block, name, -1) for name in names}
    if isinstance(visual, EfficientNetLite0):
        return {name: 1 + _number(r'trunk\.blocks\.(\d+)\.', name, -1)
                for name in names}
    if isinstance(visual, TimmModel) and hasattr(visual.trunk,
                                                 'group_matcher'):
        stages = group_parameters(
            visual.trunk, visual.trunk.group_matcher(coarse=True),
            reverse=True)
        return {f'trunk.{name}': stage for name, stage in stages.items()}
    return None


def layer_depth(backbone: nn.Module, name: str) -> tuple[int, int]:
    """Depth of a parameter in its encoder, and the number of depths.

    0 is the stem or the embedding; a stage of the image encoder, or a block
    of the text transformer, is one deeper. What has no depth is the deepest.
    """
    tower, _, name = name.partition('.')
    if tower == 'text':
        count = len(backbone.text.transformer.resblocks)
        depth = 0 if 'embedding' in name else 1 + _number(
            r'transformer\.resblocks\.(\d+)\.', name, count)
    else:
        stages = stage_of(backbone.visual) or {}
        count = max(stages.values(), default=-1)
        depth = stages.get(name, count + 1)
    return depth, count + 2


def _number(pattern: str, name: str, default: int) -> int:
    match = re.match(pattern, name)
    return int(match[1]) if match else default


def freeze_stages(visual: nn.Module, frozen_stages: int | str) -> None:
    """Freeze the first stages of an image encoder.

    Args:
        visual (nn.Module): Its parameters get ``requires_grad=False``.
        frozen_stages (int | str): -1 for none, k for the stem and k stages,
            ``'all'`` for all but what CLIP does not have.

    Raises:
        ValueError: If the encoder does not have so many stages, or they are
            not known.
    """
    if frozen_stages == -1:
        return
    stages = stage_of(visual)
    if frozen_stages == 'all':
        stages = {name: 0 for name, _ in visual.named_parameters()
                  if not is_new(name)}
        frozen_stages = 0
    elif stages is None:
        raise ValueError(
            f'frozen_stages={frozen_stages!r}: the stages of '
            f"{type(visual).__name__} are not known here: use 'all', or give "
            'it to image_encoder, if it has such an argument')
    elif frozen_stages not in range(max(stages.values()) + 1):
        raise ValueError(
            f'frozen_stages={frozen_stages!r}: the image encoder has '
            f'{max(stages.values())} stages after its stem: use -1 for none, '
            f"0 for the stem, up to {max(stages.values())}, or 'all'")
    weights = dict(visual.named_parameters())
    for name, stage in stages.items():
        if stage <= frozen_stages:
            weights[name].requires_grad_(False)


def keep_frozen_in_eval(module: nn.Module) -> None:
    """Switch the parts without a trained weight back to eval mode.

    Their batch norm keeps its statistics, and they drop nothing.
    """
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        return
    for child in module.children():
        keep_frozen_in_eval(child)
