# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Make a checkpoint of a run fit to be handed on.

Only the weights are kept, in half precision if asked for; the beginning of
the file's SHA-256 goes into its name.
"""
import argparse
import hashlib
import os
import os.path as osp

from safetensors.torch import save_file

from cris.engine import read_checkpoint, state_dict_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='checkpoint of a run')
    parser.add_argument('dst', help='file to write, without its ending')
    parser.add_argument(
        '--half', action='store_true', help='halve it: weights as fp16')
    args = parser.parse_args()
    try:
        weights = state_dict_of(read_checkpoint(args.src))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from error
    weights = {
        name: (w.half() if args.half and w.is_floating_point() else
               w).contiguous()
        for name, w in weights.items()
    }
    os.makedirs(osp.dirname(args.dst) or '.', exist_ok=True)
    unnamed = args.dst + '.safetensors'
    save_file(weights, unnamed, metadata=dict(format='pt'))
    with open(unnamed, 'rb') as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    path = f'{args.dst}-{sha256[:8]}.safetensors'
    os.replace(unnamed, path)
    print(f'{path}\n{osp.getsize(path)} bytes\nsha256 {sha256}')


if __name__ == '__main__':
    main()
