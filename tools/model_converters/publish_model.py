# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Make a checkpoint of a run fit to be handed on.

Only the weights are kept, in half precision if asked for; the beginning of
the file's SHA-256 goes into its name.
"""
import argparse
import hashlib
import os
import os.path as osp

import torch
from safetensors.torch import save
from torch import Tensor

from cris.io.checkpoints import read_checkpoint, state_dict_of


def halved(name: str, weight: Tensor) -> Tensor:
    """As fp16, but for integers and what fp16 cannot hold."""
    if not weight.is_floating_point():
        return weight
    half = weight.half()
    if half.isfinite().equal(weight.isfinite()):
        return half
    print(f'{name} is too large for fp16 and is kept as {weight.dtype}')
    return weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='checkpoint of a run')
    parser.add_argument(
        'dst', help='file to write; its hash is added to the name')
    parser.add_argument(
        '--half', action='store_true', help='halve it: weights as fp16')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='run whatever code the checkpoint brings; only for files whose '
        'origin is known')
    args = parser.parse_args()
    try:
        weights = state_dict_of(
            read_checkpoint(args.src, args.trust_checkpoint))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from error
    for name, w in weights.items():
        if not isinstance(w, torch.Tensor):
            raise SystemExit(f'{args.src}: {name} is a {type(w).__name__}, '
                             'not a tensor')
    weights = {
        name: (halved(name, w) if args.half else w).contiguous()
        for name, w in weights.items()
    }
    content = save(weights, metadata=dict(format='pt'))
    sha256 = hashlib.sha256(content).hexdigest()
    path = f'{args.dst.removesuffix(".safetensors")}-{sha256[:8]}.safetensors'
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    with open(path, 'wb') as file:
        file.write(content)
    print(f'{path}\n{len(content)} bytes\nsha256 {sha256}')


if __name__ == '__main__':
    main()
