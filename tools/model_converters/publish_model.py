# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Write the weights of a run's checkpoint as safetensors, to be published.

The start of the file's SHA-256 becomes part of its name.
"""
import argparse
import hashlib
from pathlib import Path


def halved(name: str, weight):
    """The tensor as fp16, unless fp16 cannot hold it."""
    if not weight.is_floating_point():
        return weight
    half = weight.half()
    if half.isfinite().equal(weight.isfinite()):
        return half
    print(f'{name} is too large for fp16 and is kept as {weight.dtype}')
    return weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('src', help='checkpoint of a run')
    add('dst', help='file to write; its hash is added to the name')
    add('--half', action='store_true', help='write weights as fp16')
    add('--adapters', action='store_true',
        help='write only what was trained, and a hash of the frozen weights, '
        "which the config's init_cfg gives when the file is loaded")
    add('--trust-checkpoint', action='store_true',
        help='run any code in the checkpoint; only for files of known origin')
    args = parser.parse_args()
    from safetensors.torch import save
    from torch import Tensor

    from cris.io.calibration import read_calibration
    from cris.io.checkpoints import (
        metadata_of,
        read_checkpoint,
        state_dict_of,
        trained_only,
    )
    try:
        checkpoint = read_checkpoint(args.src, args.trust_checkpoint)
        weights, metadata = (
            trained_only(checkpoint) if args.adapters
            else (state_dict_of(checkpoint), {}))
        read_calibration(checkpoint, args.src)  # is it sound?
        metadata = metadata_of(checkpoint) | metadata
    except (OSError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}') from error
    for name, w in weights.items():
        if not isinstance(w, Tensor):
            raise SystemExit(f'{args.src}: {name} is a {type(w).__name__}, '
                             'not a tensor')
        weights[name] = (halved(name, w) if args.half else w).contiguous()
    content = save(weights, metadata=dict(metadata, format='pt'))
    sha256 = hashlib.sha256(content).hexdigest()
    path = Path(
        f'{args.dst.removesuffix(".safetensors")}-{sha256[:8]}.safetensors')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f'{path}\n{len(content)} bytes\nsha256 {sha256}')


if __name__ == '__main__':
    main()
