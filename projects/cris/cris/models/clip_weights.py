# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's weights -> the names and shapes of CLIPBackbone."""
import zipfile
from typing import Dict

from torch import Tensor

from cris.engine.checkpoint import compare_weights, read_checkpoint

# CLIP's temperature, and sizes that OpenAI stores among the weights.
_NOT_NEEDED = ('logit_scale', 'logit_bias', 'input_resolution',
               'context_length', 'vocab_size')


def read_clip_weights(path: str,
                      wanted: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Read a CLIP checkpoint for a backbone of its size.

    Args:
        path (str): A state_dict in the layout of OpenAI or open_clip, plain
            or under the key ``state_dict``.
        wanted (dict[str, Tensor]): state_dict of the backbone. The residual
            of its attention pool, ``connect``, is not in CLIP and stays as it
            is; of a longer text positional embedding the first rows are taken.

    Returns:
        dict[str, Tensor]: A full state_dict of the backbone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or another size of CLIP.
    """
    if zipfile.is_zipfile(path) and any(
            name.endswith('constants.pkl')
            for name in zipfile.ZipFile(path).namelist()):
        raise ValueError(
            f'{path} is a TorchScript archive. Write its weights first: '
            "torch.save(torch.jit.load('RN50.pt').state_dict(), 'RN50.pth')")
    weights = read_checkpoint(path)
    weights = weights.get('state_dict', weights)
    weights = {name.removeprefix('module.'): w for name, w in weights.items()}
    if any(name.startswith(('neck.', 'decode_head.')) for name in weights):
        raise ValueError(f'{path} holds a whole CRIS, not CLIP: name it as '
                         'load_from, not in the init_cfg of the backbone')
    weights = {
        name if name.startswith(('visual.', 'text.')) else f'text.{name}': w
        for name, w in weights.items() if name not in _NOT_NEEDED
    }
    position = 'text.positional_embedding'
    if position in weights:
        weights[position] = weights[position][:len(wanted[position])]

    for name, own in wanted.items():
        if '.connect.' in name or name.endswith('num_batches_tracked'):
            weights.setdefault(name, own)
    differences = compare_weights(weights, wanted)
    if differences:
        raise ValueError(
            f"{path} does not hold CLIP's weights of this size:\n"
            f'{differences}')
    return weights
