# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Convert a checkpoint of the official CRIS code to this project's.

Takes a plain state_dict, one with `module.` before every name, or one wrapped
in `state_dict` with the optimizer's; .pth, .pt or .safetensors. Every name is
mapped exactly; one that is not of the official code ends the conversion.
"""
import argparse
import re

import torch

from cris.engine import read_checkpoint

_RULES = [
    (r'backbone\.(positional_embedding|text_projection|token_embedding\.'
     r'|ln_final\.|transformer\.)', r'backbone.text.\1'),
    (r'neck\.txt_proj\.', 'neck.sentence_proj.'),
    (r'neck\.f1_v_proj\.', 'neck.proj5.'),
    (r'neck\.norm_layer\.', 'neck.norm5.'),
    (r'neck\.f2_v_proj\.', 'neck.proj4.'),
    (r'neck\.f2_cat\.', 'neck.merge4.'),
    (r'neck\.f3_v_proj\.', 'neck.proj3.'),
    (r'neck\.f3_cat\.', 'neck.merge3.'),
    (r'neck\.f4_proj([345])\.', r'neck.smooth\1.'),
    (r'neck\.aggr\.', 'neck.aggregate.'),
    (r'neck\.coordconv\.0\.conv1\.', 'neck.coord.0.'),
    (r'neck\.coordconv\.1\.', 'neck.coord.1.'),
    (r'decoder\.(layers\.\d+)\.multihead_attn\.',
     r'decode_head.decoder.\1.cross_attn.'),
    (r'decoder\.', 'decode_head.decoder.'),
    (r'proj\.vis\.4\.', 'decode_head.projector.pixel_proj.'),
    (r'proj\.vis\.', 'decode_head.projector.upsample.'),
    (r'proj\.txt\.', 'decode_head.projector.kernel_proj.'),
]


_KNOWN = re.compile(r'backbone\.(visual|text)\.|neck\.(sentence_proj'
                    r'|(proj|norm|merge|smooth)[345]|aggregate|coord)\.'
                    r'|decode_head\.(decoder|projector)\.')
# CLIP's temperature; CRIS has no use for it.
_DROPPED = 'backbone.logit_scale'


def our_name(name: str) -> str:
    """Our name of a parameter or buffer of the official code.

    Raises:
        ValueError: If the official code has no such name.
    """
    ours = name
    for pattern, replacement in _RULES:
        ours, changed = re.subn('^' + pattern, replacement, name)
        if changed:
            break
    if not _KNOWN.match(ours):
        raise ValueError(name)
    return ours


def to_ours(state_dict: dict) -> dict:
    """Rename all entries of an official state_dict.

    Args:
        state_dict (dict): Official names, without `module.`.

    Returns:
        dict: The same tensors under our names.

    Raises:
        ValueError: If there are names that the official code does not have.
    """
    converted, unknown = {}, []
    for name, value in state_dict.items():
        if name == _DROPPED:
            continue
        try:
            converted[our_name(name)] = value
        except ValueError:
            unknown.append(name)
    if unknown or not converted:
        raise ValueError(
            'this is no checkpoint of the official CRIS code: ' +
            (f'it has {len(unknown)} unknown names, e.g. {unknown[:3]}'
             if unknown else 'it is empty'))
    return converted


def read_official(path: str) -> dict:
    """Official names and tensors, whatever they are wrapped in.

    Args:
        path (str): .pth, .pt or .safetensors.

    Returns:
        dict: Without `module.` before the names.
    """
    if path.endswith('.safetensors'):
        from safetensors.torch import load_file
        weights = load_file(path)
    else:
        weights = read_checkpoint(path)
    weights = weights.get('state_dict', weights)
    return {name.removeprefix('module.'): v for name, v in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='The result loads strictly into the config of its sizes.')
    parser.add_argument('src', help='official checkpoint')
    parser.add_argument('dst', help='checkpoint to write, .pth')
    args = parser.parse_args()
    try:
        state_dict = to_ours(read_official(args.src))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from error
    torch.save(dict(state_dict=state_dict), args.dst)
    print(f'{len(state_dict)} tensors in {args.dst}')


if __name__ == '__main__':
    main()
