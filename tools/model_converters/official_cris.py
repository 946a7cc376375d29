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

_NECK = {
    'txt_proj': 'sentence_proj', 'norm_layer': 'norm5', 'aggr': 'aggregate',
    'f1_v_proj': 'proj5', 'f2_v_proj': 'proj4', 'f3_v_proj': 'proj3',
    'f2_cat': 'merge4', 'f3_cat': 'merge3', 'f4_proj3': 'smooth3',
    'f4_proj4': 'smooth4', 'f4_proj5': 'smooth5',
    'coordconv.0.conv1': 'coord.0', 'coordconv.1': 'coord.1'
}
_TEXT = ('positional_embedding', 'text_projection', 'token_embedding.',
         'transformer.', 'ln_final.')
# Prefixes of names, official and ours; the first that matches is used.
_PREFIXES = [
    ('backbone.visual.', 'backbone.visual.'),
    *((f'backbone.{name}', f'backbone.text.{name}') for name in _TEXT),
    *((f'neck.{a}.', f'neck.{b}.') for a, b in _NECK.items()),
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
BASE_CONFIG = Path(__file__).parents[2] / 'configs/_base_/models/cris_r50.py'


def to_ours(state_dict: dict) -> dict:
    """Rename all entries of an official state_dict, without `module.`.

    Raises:
        ValueError: If there are names that the official code does not have.
    """
    return _rename_all(state_dict, _OFFICIAL)


def to_official(state_dict: dict) -> dict:
    """Rename all entries of our state_dict; the inverse of :func:`to_ours`."""
    return _rename_all(state_dict, _OURS)


def _rename_all(state_dict: dict, source: int) -> dict:
    names = {name: _rename(name, source) for name in state_dict
             if name != _UNUSED}
    unknown = [f'  {name}' for name, other in names.items() if other is None]
    if unknown:
        raise ValueError(
            f'this is not a CRIS checkpoint {_WHOSE[source]}: it has '
            f'{len(unknown)} unknown names:\n' + '\n'.join(unknown))
    return {other: state_dict[name] for name, other in names.items()}


def _rename(name: str, source: int) -> str | None:
    for pair in _PREFIXES:
        if name.startswith(pair[source]):
            name = pair[1 - source] + name.removeprefix(pair[source])
            if 'decoder.layers.' in name:
                name = name.replace(_CROSS_ATTENTION[source],
                                    _CROSS_ATTENTION[1 - source])
            return name
    return None


def model_config(weights: dict, num_heads: int):
    """Config of the model that a state_dict under our names belongs to.

    All sizes are read from the tensors, except the number of heads of the
    decoder, which no tensor shows.

    Raises:
        ValueError: If a tensor that shows a size is missing or misshapen.
    """
    from mmengine.config import Config

    def shape(name: str, dims: int) -> tuple:
        found = tuple(getattr(weights.get(name), 'shape', ()))
        if len(found) != dims:
            state = 'is missing'
            if name in weights:
                state = f'has shape {found}, not {dims} dimensions'
            raise ValueError('the sizes of the model cannot be read: '
                             f'{_rename(name, _OURS)} {state}')
        return found

    def count(pattern: str) -> int:
        """Length of a list of modules, from the largest index."""
        found = [re.match(pattern, name) for name in weights]
        return 1 + max((int(m[1]) for m in found if m), default=-1)

    visual, text = 'backbone.visual', 'backbone.text'
    decoder = 'decode_head.decoder.layers'
    projector = 'decode_head.projector'
    positions = shape(f'{visual}.attnpool.positional_embedding', 2)[0]
    width, embed_dim = shape(f'{text}.text_projection', 2)
    projections = [shape(f'neck.proj{i}.0.weight', 4) for i in (3, 4, 5)]
    channels = shape(f'{projector}.upsample.1.0.weight', 4)[1]
    kernel, sentence_channels = shape(f'{projector}.kernel_proj.weight', 2)
    keys = f'{decoder}.0.cross_attn.k_proj_weight'
    if keys not in weights:  # PyTorch joins projections of equal sizes
        keys = f'{decoder}.0.cross_attn.in_proj_weight'

    model = Config.fromfile(BASE_CONFIG).model
    model.backbone = dict(
        type='CLIPBackbone', embed_dim=embed_dim,
        vision_cfg=dict(
            image_size=32 * math.isqrt(positions - 1),
            layers=[count(rf'{visual}\.layer{i}\.(\d+)\.')
                    for i in (1, 2, 3, 4)],
            width=shape(f'{visual}.layer1.0.conv1.weight', 4)[0]),
        text_cfg=dict(
            context_length=shape(f'{text}.positional_embedding', 2)[0],
            vocab_size=shape(f'{text}.token_embedding.weight', 2)[0],
            width=width, heads=max(width // 64, 1),
            layers=count(rf'{text}\.transformer\.resblocks\.(\d+)\.')),
        quick_gelu=True)
    model.neck.update(
        in_channels=[p[1] for p in projections],
        out_channels=[p[0] for p in projections], sentence_channels=embed_dim)
    model.decode_head.update(
        in_channels=channels, word_channels=shape(keys, 2)[1],
        sentence_channels=sentence_channels,
        num_layers=count(rf'{decoder}\.(\d+)\.'), num_heads=num_heads,
        feedforward_channels=shape(f'{decoder}.0.ffn.0.weight', 2)[0],
        kernel_size=math.isqrt((kernel - 1) // max(channels // 2, 1)))
    return model


def check(official: dict, num_heads: int):
    """Config of the model that an official state_dict loads into strictly.

    Raises:
        ValueError: With all that is missing, unknown or misshapen.
    """
    import torch
    from mmseg.registry import MODELS

    import cris  # noqa: F401  registers the model
    from cris.io.checkpoints import compare_weights
    if not any(name.startswith('proj.') for name in official):
        raise ValueError(f'this is not a CRIS checkpoint {_WHOSE[_OFFICIAL]}: '
                         f'none of its {len(official)} names starts with '
                         f"'proj.'; it has {sorted(official)[:3]}")
    known = {ours: value for name, value in official.items()
             if (ours := _rename(name, _OFFICIAL))}
    cfg = model_config(known, num_heads)
    try:
        with torch.device('meta'):
            model = MODELS.build(cfg)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError('its tensors do not describe a model: '
                         f'{error}') from error
    faults = compare_weights(
        {name: value for name, value in official.items() if name != _UNUSED},
        to_official(model.state_dict()), most=sys.maxsize)
    if faults:
        raise ValueError(f'it does not fit the model of its sizes:\n{faults}')
    return cfg


def convert(args: argparse.Namespace):
    """Write the converted checkpoint; return the config of its model.

    Ours has the weights under ``state_dict``, except in safetensors. The way
    back writes a plain state_dict. The temperature, which the official code
    expects, is the one before the conversion, or CLIP's initial one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a complete checkpoint.
    """
    import torch
    from safetensors.torch import save_file

    from cris.io.checkpoints import read_checkpoint, state_dict_of
    checkpoint = read_checkpoint(args.src, args.trust_checkpoint)
    weights = state_dict_of(checkpoint)
    if args.reverse:
        content = weights = to_official(weights)
        cfg = check(weights, args.num_heads)
        weights.update(checkpoint.get('meta', {}).get(
            'official_unused', {_UNUSED: torch.tensor(_INITIAL)}))
    else:
        if any(name.startswith('decode_head.') for name in weights):
            raise ValueError("it has this project's names already")
        cfg = check(weights, args.num_heads)
        unused = {k: v for k, v in weights.items() if k == _UNUSED}
        weights = to_ours(weights)
        content = dict(meta=dict(official_unused=unused), state_dict=weights)
    if args.dst.endswith('.safetensors'):
        save_file({k: v.contiguous() for k, v in weights.items()}, args.dst)
    else:
        torch.save(content, args.dst)
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
        help='run any code in the checkpoint; only for files of known origin')
    args = parser.parse_args()
    if not osp.isdir(osp.dirname(args.dst) or '.'):
        parser.error(f'there is no folder {osp.dirname(args.dst)}')
    return args


def main() -> None:
    args = parse_args()
    from mmengine.config import Config
    try:
        model = convert(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from error
    print(f'written: {args.dst}', file=sys.stderr)
    if args.print_config:
        imports = dict(imports=['cris'], allow_failed_imports=False)
        print(Config(dict(custom_imports=imports, default_scope='mmseg',
                          model=model)).pretty_text)


if __name__ == '__main__':
    main()
