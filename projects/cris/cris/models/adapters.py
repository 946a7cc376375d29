# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""LoRA in CLIP's two encoders, by the package peft.

The names of a state_dict stay: those of the plain backbone, and those of the
adapters besides. A checkpoint without adapters can be loaded.

Shapes: E expressions or images; N tokens; h heads; C channels.
"""
import re

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from .freezing import is_new
from .image_encoders import meta_copy, probe_image

_INSTALL = "pip install 'peft>=0.14' (requirements/optional.txt)"
# Of init_lora_weights; the others change the weights that are adapted, which
# are not loaded yet.
_STARTS = (True, False, 'gaussian', 'orthogonal')


class SplitAttention(nn.Module):
    """Self-attention whose projections are linear layers, for adapters.

    It takes over the weights of a batch-first nn.MultiheadAttention, which
    does not call its projections. peft's own layer for it adds the adapter
    of out_proj twice and changes the frozen weights by rounding (0.21).
    """

    def __init__(self, plain: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.dropout = plain.num_heads, plain.dropout
        self.in_proj = _linear(plain.in_proj_weight, plain.in_proj_bias)
        self.out_proj = _linear(plain.out_proj.weight, plain.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor,
                need_weights: bool = False, attn_mask: Tensor | None = None
                ) -> tuple[Tensor, None]:
        """See ``torch.nn.MultiheadAttention.forward``; all three inputs are
        the same, and no weights are returned.
        """
        x = self.in_proj(query).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = x.permute(2, 0, 3, 1, 4)  # (E, h, N, C/h)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask,
            dropout_p=self.dropout if self.training else 0.)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device='meta')
    linear.weight, linear.bias = weight, bias
    return linear


def add_adapters(backbone: nn.Module, cfg: dict) -> None:
    """Put adapters into the towers of a CLIPBackbone and freeze the rest.

    A part that is frozen already gets none. The names of its state_dict and
    those that it loads are mapped, see :func:`plain_name`.

    Args:
        backbone (nn.Module): With ``visual`` and ``text``.
        cfg (dict): ``type='LoRA'`` and arguments of peft.LoraConfig. Without
            target_modules all projections of attention, in an image encoder
            without attention those of its MLPs.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If an argument is unknown, or names no layer.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(f'the backbone has peft={cfg}, but peft cannot be '
                          f'imported ({error}): {_INSTALL}') from error
    cfg = dict(cfg)
    if (kind := cfg.pop('type', None)) != 'LoRA':
        raise ValueError(f"peft.type={kind!r} must be 'LoRA'; DoRA is "
                         "dict(type='LoRA', use_dora=True, ...)")
    if (start := cfg.get('init_lora_weights', True)) not in _STARTS:
        raise ValueError(f'peft.init_lora_weights={start!r} starts from '
                         "CLIP's weights, which are loaded later: use one of "
                         f'{", ".join(map(repr, _STARTS))}')
    names = set(backbone.state_dict())
    trained = [p for name, p in backbone.named_parameters() if is_new(name)]
    for block in backbone.modules():
        if isinstance(block, ResidualAttentionBlock) and any(
                p.requires_grad for p in block.attn.parameters()):
            block.attn = SplitAttention(block.attn)
    cfg['target_modules'] = _targets(
        _adaptable(backbone), cfg.get('target_modules'))
    try:
        config = peft.LoraConfig(**cfg)
    except TypeError as error:
        raise ValueError(f'peft: {error}') from error
    peft.inject_adapter_in_model(config, backbone)
    for weight in trained:
        weight.requires_grad_(True)
    for tower in (backbone.visual, backbone.text):
        tower._register_state_dict_hook(_save_plain)
        tower._register_load_state_dict_pre_hook(_load_plain, with_module=True)
    if missing := names - set(backbone.state_dict()):
        raise ValueError(f'peft={cfg} replaces the weights '
                         f'{sorted(missing)[:3]}, which is not supported')


def _adaptable(backbone: nn.Module) -> list[str]:
    """Names of layers that can be adapted: they are called, not frozen."""
    visual, transformer = map(meta_copy, (backbone.visual,
                                          backbone.text.transformer))
    called = set()
    for prefix, tower in (('visual', visual),
                          ('text.transformer', transformer)):
        for name, module in tower.named_modules():
            if isinstance(module, nn.Linear) or (
                    isinstance(module, nn.Conv2d) and module.groups == 1):
                module.register_forward_hook(
                    lambda *_, name=f'{prefix}.{name}': called.add(name))
    with torch.no_grad():
        backbone._taps.maps(visual, probe_image())
        transformer(torch.empty(1, 2, backbone.text.width, device='meta'))
    return [name for name, module in backbone.named_modules()
            if name in called and module.weight.requires_grad
            and not is_new(f'{name}.')]


def _targets(names: list[str], wanted: str | list[str] | None) -> list[str]:
    """The layers meant by peft's target_modules, or the usual ones."""
    if wanted is None:
        towers = [[name for name in names if name.startswith(tower)]
                  for tower in ('visual.', 'text.')]
        parts = {tower[0].partition('.')[0]:
                 _within('attn', tower) or _within('mlp', tower)
                 for tower in towers if tower}
    elif isinstance(wanted, str):  # as in peft, a regular expression
        parts = {wanted: [name for name in names
                          if re.fullmatch(wanted, name)]}
    else:
        parts = {part: [name for name in names
                        if f'.{name}'.endswith(f'.{part}')]
                 for part in wanted}
    found = {name for part in parts.values() for name in part}
    missing = [part for part, layers in parts.items() if not layers]
    if missing or not found:
        ends = dict.fromkeys(name.rpartition('.')[2] for name in names)
        raise ValueError(
            f'peft.target_modules={wanted} matches no layer that is called '
            f'and not frozen ({", ".join(missing) or "all are frozen"}); '
            f'these could match: {", ".join(ends) or "none"}')
    return [name for name in names if name in found]


def _within(part: str, names: list[str]) -> list[str]:
    return [name for name in names if f'.{part}' in name]


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return '.lora_' in name


def plain_name(name: str) -> str:
    """Name of a weight in the backbone without adapters."""
    name = name.replace('.base_layer.', '.')
    return re.sub(r'(\.resblocks\.\d+\.attn\.in_proj)\.(weight|bias)$',
                  r'\1_\2', name)


def _save_plain(tower: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        weight = state_dict.pop(name)  # all, to keep their order
        state_dict[plain_name(name)] = weight


def _load_plain(tower: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Map the names that are loaded; without adapters, these stay."""
    weights = dict(tower.named_parameters())
    adapted = any(is_adapter(name) for name in state_dict
                  if name.startswith(prefix))
    for name in weights:
        plain = prefix + plain_name(name)
        if plain in state_dict:
            state_dict[prefix + name] = state_dict.pop(plain)
    if adapted:
        return
    for name, weight in weights.items():
        if is_adapter(name):
            layer = prefix + name.partition('.lora_')[0]
            base = state_dict.get(f'{layer}.base_layer.weight')
            if '.lora_magnitude_vector.' in name and base is not None:
                weight = _magnitude(base, weight)
            state_dict[prefix + name] = weight.detach()


def _magnitude(weight: Tensor, like: Tensor) -> Tensor:
    """DoRA's norm of each output channel (arXiv 2402.09353, equation 2)."""
    return weight.flatten(1).norm(dim=1).to(like.dtype).view_as(like)


def reset_adapters(backbone: nn.Module) -> None:
    """Start anew, after an initialisation that does not know adapters."""
    start = backbone.peft_config['default'].init_lora_weights
    for layer in _adapted(backbone).values():
        layer.reset_lora_parameters('default', start)
        for vector in layer.lora_magnitude_vector.values():
            vector.weight.data = _magnitude(
                layer.get_base_layer().weight.detach(), vector.weight)


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights that they adapt, in place."""
    for name, layer in _adapted(model).items():
        layer.merge()
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules()
            if hasattr(module, 'lora_A')}
