# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image encoders, kept spatial: three maps of any of them.

Shapes: B images of H x W pixels; h x w pixels at stride 32; C channels.
"""
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from .layers import recompute

STRIDES = (8, 16, 32)  # of the paper
SMALL_STRIDES = (4, 8, 32)  # for small objects
CLIP_ENCODERS = (ModifiedResNet, VisionTransformer, TimmModel)
_PROBE = 448  # pixels: a multiple of 32 and of a ViT's 14


class SpatialAttentionPool(AttentionPool2d):
    """CLIP's attention pool without its mean token, from map to map.

    The positional embedding is resized to the size of the map, and a
    projected residual (``connect``, not in CLIP) is added.

    Source: the official CRIS code; paper section 3.1.
    """

    def __init__(self, grid_size: int, in_channels: int, num_heads: int,
                 out_channels: int):
        super().__init__(grid_size, in_channels, num_heads, out_channels)
        self.grid_size = grid_size
        self.connect = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """From the last stage's ``(B, C_in, h, w)`` to ``(B, C_out, h, w)``:
        every pixel attends to all.
        """
        size = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, h*w, C_in)
        tokens = tokens + self.position(size)
        query, key, value = (
            proj(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(query, key, value)
        out = self.c_proj(out.transpose(1, 2).flatten(2))
        out = out.transpose(1, 2).unflatten(-1, size)
        return F.relu(out + self.connect(x))

    def position(self, size: torch.Size) -> Tensor:
        """Positional embedding of every pixel, ``(1, h * w, C_in)``."""
        grid = self.positional_embedding[1:].T.unflatten(
            -1, (self.grid_size, self.grid_size))
        return resize_grid(grid[None], size).flatten(2).transpose(1, 2)


def resize_grid(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Positions ``(1, C, h, w)`` for a map of another size."""
    return F.interpolate(grid, size, mode='bicubic', align_corners=False)


def keep_spatial(visual: ModifiedResNet) -> ModifiedResNet:
    """Replace the attention pool of CLIP's ResNet by a spatial one."""
    pool = visual.attnpool
    visual.attnpool = SpatialAttentionPool(visual.image_size // 32,
                                           pool.q_proj.in_features,
                                           pool.num_heads, visual.output_dim)
    visual.init_parameters()
    return visual


@dataclass
class Taps:
    """Where an encoder gives its maps.

    Attributes:
        channels (Sequence[int]): Of each map.
        strides (Sequence[int]): Pixels of the image for a pixel of each map:
            those wanted, or the same for all, the patch size of a ViT.
        maps (Callable): From the encoder and images to the maps.
        wanted (Sequence[int]): Strides of :meth:`pyramid`.
    """
    channels: Sequence[int]
    strides: Sequence[int]
    maps: Callable[[nn.Module, Tensor], Sequence[Tensor]]
    wanted: Sequence[int] = STRIDES

    def __post_init__(self):
        self.strides, self.wanted = tuple(self.strides), tuple(self.wanted)
        flat = len(set(self.strides)) == 1
        if self.strides != self.wanted and not flat:
            raise ValueError(
                'the image encoder gives maps at the strides '
                f'{_list(self.strides)}: CRIS needs {_list(self.wanted)}, '
                'or one stride as a ViT has; set its out_indices, or strides')

    @property
    def image_channels(self) -> tuple[int, ...]:
        """Of the maps of :meth:`pyramid`."""
        return tuple(_three(self.channels))

    def pyramid(self, visual: nn.Module, images: Tensor) -> list[Tensor]:
        """Maps at the strides wanted.

        Those of a ViT are resized, without weights of their own: the neck
        begins with convolutions. If patches do not divide the images, these
        are resized to the next size that they do.
        """
        size = images.shape[-2:]
        stride = self.strides[-1]
        if self.strides == self.wanted:
            return list(self.maps(visual, images))
        fitting = [max(1, round(side / stride)) * stride for side in size]
        if fitting != list(size):
            images = F.interpolate(images, fitting, mode='bicubic',
                                   align_corners=False)
        maps = _three(self.maps(visual, images))
        return [_resize(x, [side // wanted for side in size])
                for x, wanted in zip(maps, self.wanted, strict=True)]


def _list(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))


def _three(items: Sequence) -> list:
    """If there are fewer, the first one several times."""
    return [items[0]] * (3 - len(items)) + list(items)


def _resize(x: Tensor, size: list[int]) -> Tensor:
    if list(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


def tap(visual: nn.Module, strides: Sequence[int] = STRIDES,
        out_indices: Sequence[int] | None = None,
        with_cp: bool = False) -> Taps:
    """Find the maps of an image encoder, and drop what comes after them.

    Args:
        visual (nn.Module): open_clip's, or any module that returns maps
            ``(B, C, h, w)``, of which the last three are taken.
        strides (Sequence[int]): Of the maps: 8, 16, 32, or 4, 8, 32.
        out_indices (Sequence[int], optional): Up to three blocks of a ViT of
            open_clip, from 0, whose maps are taken; by default the last.
        with_cp (bool): Compute the stem and first stage of a ResNet, or all
            blocks of others, again in the backward pass.

    Raises:
        ValueError: If the maps are not as CRIS needs them.
    """
    if tuple(strides) not in (STRIDES, SMALL_STRIDES):
        raise ValueError(f'strides={strides} must be {STRIDES} or '
                         f'{SMALL_STRIDES}')
    if isinstance(visual, ModifiedResNet):
        width = visual.layer1[-1].conv3.out_channels
        small = tuple(strides) == SMALL_STRIDES
        if not small:
            width *= 2
        return Taps((width, 2 * width, visual.output_dim), strides,
                    partial(_resnet_maps, small=small, with_cp=with_cp),
                    strides)
    if isinstance(visual, VisionTransformer):
        blocks = _blocks(len(visual.transformer.resblocks), out_indices)
        visual.transformer.resblocks = visual.transformer.resblocks[
            :blocks[-1] + 1]
        visual.ln_post = visual.attn_pool = visual.proj = None
        return Taps([visual.transformer.width] * len(blocks),
                    visual.patch_size[:1] * len(blocks),
                    partial(_vit_maps, blocks=blocks, with_cp=with_cp),
                    strides)
    if isinstance(visual, TimmModel):
        taps = _tap_timm(visual, strides, out_indices)
        visual.set_grad_checkpointing(with_cp)
        return taps
    for name, value in (('out_indices', out_indices), ('with_cp', with_cp)):
        if value:
            raise ValueError(f'{name} is for encoders of open_clip: give it '
                             'to image_encoder, if it has such an argument')
    return _probe(visual, strides)


def _blocks(count: int, wanted: Sequence[int] | None) -> list[int]:
    wanted = [count - 1] if wanted is None else list(wanted)
    if not 1 <= len(wanted) <= 3 or wanted != sorted(wanted) or not all(
            0 <= index < count for index in wanted):
        raise ValueError(f'out_indices={wanted} must be one to three '
                         f'ascending blocks between 0 and {count - 1}')
    return wanted


def _resnet_maps(visual: ModifiedResNet, x: Tensor, small: bool,
                 with_cp: bool) -> tuple[Tensor, ...]:

    def first(x: Tensor) -> Tensor:
        return visual.layer1(visual.stem(x))

    c2 = _run(first, visual, x, with_cp)
    c3 = visual.layer2(c2)
    c4 = visual.layer3(c3)
    c5 = visual.attnpool(visual.layer4(c4))
    return (c2, c3, c5) if small else (c3, c4, c5)


def _run(function: Callable, module: nn.Module, x: Tensor,
         with_cp: bool) -> Tensor:
    if with_cp and torch.is_grad_enabled():
        return recompute(function, module, x)
    return function(x)


def _vit_maps(visual: VisionTransformer, x: Tensor, blocks: list[int],
              with_cp: bool) -> list[Tensor]:
    """As open_clip's forward_intermediates, at any size of the images."""
    x = visual.conv1(x)
    size = x.shape[-2:]
    first, grid = visual.positional_embedding.split(
        [1, len(visual.positional_embedding) - 1])
    if tuple(size) != tuple(visual.grid_size):
        grid = grid.T.unflatten(-1, visual.grid_size)[None]
        grid = resize_grid(grid, size)[0].flatten(1).T
    x = x.flatten(2).transpose(1, 2) + grid
    start = (visual.class_embedding + first).to(x.dtype)
    x = torch.cat([start.expand(x.shape[0], 1, -1), x], dim=1)
    x = visual.ln_pre(visual.patch_dropout(x))
    maps = []
    for index, block in enumerate(visual.transformer.resblocks):
        x = _run(block, block, x, with_cp)
        if index in blocks:
            maps.append(x[:, 1:].transpose(1, 2).unflatten(-1, size))
    return maps


def _tap_timm(visual: TimmModel, wanted: Sequence[int],
              out_indices: Sequence[int] | None) -> Taps:
    name = visual.trunk.pretrained_cfg['architecture']
    settings = dict(num_classes=0)
    try:  # a ViT
        trunk = timm.create_model(name, dynamic_img_size=True, **settings)
    except TypeError:
        trunk = timm.create_model(name, **settings)
    visual.trunk, visual.head = trunk, None
    strides = [info['reduction'] for info in trunk.feature_info]
    if set(wanted) <= set(strides):
        indices = [strides.index(stride) for stride in wanted]
    else:
        indices = _blocks(len(strides), out_indices)
    trunk.prune_intermediate_layers(indices, prune_norm=True)
    infos = [trunk.feature_info[index] for index in indices]
    return Taps([info['num_chs'] for info in infos],
                [info['reduction'] for info in infos],
                partial(_timm_maps, indices=indices), wanted)


def _timm_maps(visual: TimmModel, x: Tensor,
               indices: list[int]) -> list[Tensor]:
    return visual.trunk.forward_intermediates(
        x, indices=indices, intermediates_only=True)


def _probe(visual: nn.Module, wanted: Sequence[int]) -> Taps:
    """What a module returns for an image without content."""
    maps = _last_maps(meta_copy(visual), probe_image())
    shapes = [tuple(x.shape) for x in maps]
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(
            f'the image encoder {type(visual).__name__} returns tensors of '
            f'{shapes}: CRIS needs maps (B, C, h, w)')
    strides = [round(_PROBE / shape[2]) for shape in shapes]
    return Taps([shape[1] for shape in shapes], strides, _last_maps, wanted)


def freeze_unused(visual: nn.Module, taps: Taps) -> None:
    """Freeze weights on which no map depends; several ranks need that."""
    with torch.inference_mode(False), torch.enable_grad():
        trial = meta_copy(visual)
        sum(x.sum() for x in taps.maps(trial, probe_image())).backward()
    for ours, theirs in zip(visual.parameters(), trial.parameters(),
                            strict=True):
        ours.requires_grad_(theirs.grad is not None)


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy, in eval mode, that computes nothing but shapes."""
    weights = {id(p): nn.Parameter(torch.empty_like(p, device='meta'),
                                   p.requires_grad)
               for p in module.parameters()}
    weights |= {id(b): torch.empty_like(b, device='meta')
                for b in module.buffers()}
    module = copy.deepcopy(module, weights)
    module.eval()  # mmpretrain's returns None
    return module


def probe_image() -> Tensor:
    """An image for a :func:`meta_copy` of an encoder."""
    return torch.empty(1, 3, _PROBE, _PROBE, device='meta')


def _last_maps(visual: nn.Module, x: Tensor) -> list[Tensor]:
    maps = visual(x)
    return [maps] if isinstance(maps, Tensor) else list(maps)[-3:]
