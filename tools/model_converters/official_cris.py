# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Convert a checkpoint of the official CRIS code to this project's, or back.

Reads a plain state_dict, one with `module.` before every name, or one wrapped
in `state_dict` with the optimizer's; .pth, .pt or .safetensors; of any size.
Names are mapped one to one. Whatever is missing, unknown or of a shape that
does not fit the rest ends the conversion with a list.
"""
import argparse
import math
import os.path as osp
import re
import sys
from pathlib import Path

# Prefixes of names, official and ours; the first that matches is used.
_PREFIXES = [
    ('backbone.visual.', 'backbone.visual.'),
    ('backbone.positional_embedding', 'backbone.text.positional_embedding'),
    ('backbone.text_projection', 'backbone.text.text_projection'),
    ('backbone.token_embedding.', 'backbone.text.token_embedding.'),
    ('backbone.transformer.', 'backbone.text.transformer.'),
    ('backbone.ln_final.', 'backbone.text.ln_final.'),
    ('neck.txt_proj.', 'neck.sentence_proj.'),
    ('neck.f1_v_proj.', 'neck.proj5.'),
    ('neck.norm_layer.', 'neck.norm5.'),
    ('neck.f2_v_proj.', 'neck.proj4.'),
    ('neck.f2_cat.', 'neck.merge4.'),
    ('neck.f3_v_proj.', 'neck.proj3.'),
    ('neck.f3_cat.', 'neck.merge3.'),
    ('neck.f4_proj3.', 'neck.smooth3.'),
    ('neck.f4_proj4.', 'neck.smooth4.'),
    ('neck.f4_proj5.', 'neck.smooth5.'),
    ('neck.aggr.', 'neck.aggregate.'),
    ('neck.coordconv.0.conv1.', 'neck.coord.0.'),
    ('neck.coordconv.1.', 'neck.coord.1.'),
    ('decoder.', 'decode_head.decoder.'),
    ('proj.vis.4.', 'decode_head.projector.pixel_proj.'),
    ('proj.vis.', 'decode_head.projector.upsample.'),
    ('proj.txt.', 'decode_head.projector.kernel_proj.'),
]
# In any layer of the decoder.
_CROSS_ATTENTION = ('.multihead_attn.', '.cross_attn.')
# CLIP's temperature: CRIS does not use it, but the official code loads it.
_UNUSED = 'backbone.logit_scale'
_INITIAL = math.log(1 / 0.07)
_OFFICIAL, _OURS = 0, 1
_WHOSE = ('of the official code', "with this project's names")
BASE_CONFIG = (
    Path(__file__).parents[2] / 'configs/_base_/models/cris_r50.py')


def to_ours(state_dict: dict) -> dict:
    """Rename all entries of an official state_dict.

    Args:
        state_dict (dict): Official names, without `module.`.

    Returns:
        dict: The same tensors under our names.

    Raises:
        ValueError: If there are names that the official code does not have.
    """
    return _rename_all(state_dict, _OFFICIAL)


def to_official(state_dict: dict) -> dict:
    """Rename all entries of our state_dict; the inverse of :func:`to_ours`."""
    return _rename_all(state_dict, _OURS)


def _rename_all(state_dict: dict, source: int) -> dict:
    renamed, unknown = {}, []
    for name, value in state_dict.items():
        other = _rename(name, source)
        if other is not None:
            renamed[other] = value
        elif name != _UNUSED:
            unknown.append(name)
    if unknown or not renamed:
        listed = '\n'.join(f'  {name}' for name in unknown)
        raise ValueError(
            f'this is not a CRIS checkpoint {_WHOSE[source]}: ' +
            (f'it has {len(unknown)} unknown names:\n{listed}'
             if unknown else 'it is empty'))
    return renamed


def _rename(name: str, source: int) -> str | None:
    for pair in _PREFIXES:
        if name.startswith(pair[source]):
            name = pair[1 - source] + name.removeprefix(pair[source])
            if 'decoder.layers.' in name:
                name = name.replace(_CROSS_ATTENTION[source],
                                    _CROSS_ATTENTION[1 - source])
            return name
    return None


def model_config(weights: dict, num_heads: int = 8) -> dict:
    """Config of the model that a checkpoint belongs to.

    All sizes are read from the tensors, except the number of heads of the
    decoder, which no tensor shows.

    Args:
        weights (dict): State_dict under our names.
        num_heads (int): Heads of the decoder; the official code has 8.

    Returns:
        ConfigDict: For mmseg's MODELS.

    Raises:
        ValueError: If a tensor that shows a size is missing or misshapen.
    """
    from mmengine.config import Config

    def shape(name: str, dims: int) -> tuple:
        found = getattr(weights.get(name), 'shape', None)
        if found is None or len(found) != dims:
            state = (' is missing' if found is None else
                     f' has shape {tuple(found)}, not {dims} dimensions')
            raise ValueError('the sizes of the model cannot be read: '
                             f'{_rename(name, _OURS)}{state}')
        return tuple(found)

    def count(pattern: str) -> int:
        """Length of a list of modules, from the largest index."""
        found = [re.match(pattern, name) for name in weights]
        return 1 + max((int(m[1]) for m in found if m), default=-1)

    visual, text = 'backbone.visual', 'backbone.text'
    decoder = 'decode_head.decoder.layers'
    projector = 'decode_head.projector'
    grid = math.isqrt(
        shape(f'{visual}.attnpool.positional_embedding', 2)[0] - 1)
    width, embed_dim = shape(f'{text}.text_projection', 2)
    projections = [shape(f'neck.proj{i}.0.weight', 4) for i in (3, 4, 5)]
    channels = shape(f'{projector}.upsample.1.0.weight', 4)[1]
    kernel, sentence_channels = shape(f'{projector}.kernel_proj.weight', 2)
    keys = f'{decoder}.0.cross_attn.k_proj_weight'
    if keys not in weights:  # PyTorch joins projections of equal sizes
        keys = f'{decoder}.0.cross_attn.in_proj_weight'

    model = Config.fromfile(BASE_CONFIG).model
    model.backbone = dict(
        type='CLIPBackbone',
        embed_dim=embed_dim,
        vision_cfg=dict(
            image_size=32 * grid,
            layers=[
                count(rf'{visual}\.layer{i}\.(\d+)\.') for i in (1, 2, 3, 4)
            ],
            width=shape(f'{visual}.layer1.0.conv1.weight', 4)[0]),
        text_cfg=dict(
            context_length=shape(f'{text}.positional_embedding', 2)[0],
            vocab_size=shape(f'{text}.token_embedding.weight', 2)[0],
            width=width,
            heads=max(width // 64, 1),
            layers=count(rf'{text}\.transformer\.resblocks\.(\d+)\.')),
        quick_gelu=True)
    model.neck.update(
        in_channels=[p[1] for p in projections],
        out_channels=[p[0] for p in projections],
        sentence_channels=embed_dim)
    model.decode_head.update(
        in_channels=channels,
        word_channels=shape(keys, 2)[1],
        sentence_channels=sentence_channels,
        num_layers=count(rf'{re.escape(decoder)}\.(\d+)\.'),
        num_heads=num_heads,
        feedforward_channels=shape(f'{decoder}.0.ffn.0.weight', 2)[0],
        kernel_size=math.isqrt((kernel - 1) // max(channels // 2, 1)))
    return model


def check(official: dict, num_heads: int = 8) -> dict:
    """Check that an official state_dict is complete.

    Args:
        official (dict): Official names, without `module.`.
        num_heads (int): See :func:`model_config`.

    Returns:
        ConfigDict: Config of the model that it loads into strictly.

    Raises:
        ValueError: With all that is missing, unknown or misshapen.
    """
    import torch
    from mmseg.registry import MODELS

    import cris  # noqa: F401  registers the model
    from cris.io.checkpoints import compare_weights
    known = {
        name: value
        for name, value in official.items() if _rename(name, _OFFICIAL)
    }
    if not any(name.startswith('proj.') for name in known):
        raise ValueError(f'this is not a CRIS checkpoint {_WHOSE[_OFFICIAL]}: '
                         f'none of its {len(official)} names starts with '
                         f"'proj.'; it has {sorted(official)[:3]}")
    cfg = model_config(to_ours(known), num_heads)
    try:
        with torch.device('meta'):
            model = MODELS.build(cfg)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError('its tensors do not describe a model: '
                         f'{error}') from error
    faults = compare_weights(
        {name: value for name, value in official.items() if name != _UNUSED},
        to_official(model.state_dict()),
        most=sys.maxsize)
    if faults:
        raise ValueError(f'it does not fit the model of its sizes:\n{faults}')
    return cfg


def convert(src: str,
            dst: str,
            num_heads: int = 8,
            trust: bool = False,
            reverse: bool = False) -> dict:
    """Convert an official checkpoint to ours, or back.

    The way back writes a plain state_dict. The temperature, which the
    official code expects, is the one before the conversion, or CLIP's initial
    one.

    Args:
        src (str): Checkpoint to read.
        dst (str): File to write; ours has the weights under ``state_dict``,
            except in safetensors.
        num_heads (int): See :func:`model_config`.
        trust (bool): See :func:`cris.io.checkpoints.read_checkpoint`.
        reverse (bool): From ours to the official names. Defaults to False.

    Returns:
        ConfigDict: Config of the model that it loads into strictly.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a complete checkpoint.
    """
    import torch
    from safetensors.torch import save_file

    from cris.io.checkpoints import read_checkpoint, state_dict_of
    checkpoint = read_checkpoint(src, trust)
    weights = state_dict_of(checkpoint)
    if reverse:
        weights = to_official(weights)
        cfg = check(weights, num_heads)
        weights.update(
            checkpoint.get('meta', {}).get(
                'official_unused', {_UNUSED: torch.tensor(_INITIAL)}))
        content = weights
    else:
        if any(name.startswith('decode_head.') for name in weights):
            raise ValueError("it has this project's names already")
        cfg = check(weights, num_heads)
        unused = {k: v for k, v in weights.items() if k == _UNUSED}
        weights = to_ours(weights)
        content = dict(
            meta=dict(official_unused=unused), state_dict=weights)
    if dst.endswith('.safetensors'):
        save_file({k: v.contiguous() for k, v in weights.items()}, dst)
    else:
        torch.save(content, dst)
    return cfg


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='The result loads strictly into the config that '
        '--print-config shows.')
    add = parser.add_argument
    add('src', help='checkpoint: .pth, .pt or .safetensors')
    add('dst', help='checkpoint to write')
    add('--reverse', action='store_true',
        help="from this project's names to the official ones")
    add('--print-config', action='store_true',
        help="print the model's config to standard output")
    add('--num-heads', type=int, default=8,
        help='heads of the decoder, which no tensor shows (default: 8)')
    add('--trust-checkpoint', action='store_true',
        help='run any code in the checkpoint; only for files of '
        'known origin')
    args = parser.parse_args()
    if not osp.isdir(osp.dirname(args.dst) or '.'):
        parser.error(f'there is no folder {osp.dirname(args.dst)}')
    return args


def main() -> None:
    args = parse_args()
    from mmengine.config import Config
    try:
        model = convert(args.src, args.dst, args.num_heads,
                        args.trust_checkpoint, args.reverse)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from error
    print(f'written: {args.dst}', file=sys.stderr)
    if args.print_config:
        imports = dict(imports=['cris'], allow_failed_imports=False)
        print(
            Config(
                dict(
                    custom_imports=imports,
                    default_scope='mmseg',
                    model=model)).pretty_text)


if __name__ == '__main__':
    main()
