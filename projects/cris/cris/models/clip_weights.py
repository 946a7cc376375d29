# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's weights, under the names of CLIPBackbone."""
import os
from collections.abc import Container, Iterable

import open_clip
from mmengine.dist import all_gather_object, is_main_process
from torch import Tensor

from cris.io.checkpoints import compare_weights, read_checkpoint, state_dict_of

_TAG_PREFIX = 'open_clip://'
# CLIP's temperature, the sizes that OpenAI stores among the weights, and the
# causal mask, which a traced model keeps.
_NOT_NEEDED = ('logit_scale', 'logit_bias', 'input_resolution',
               'context_length', 'vocab_size', 'attn_mask', 'text.attn_mask')
_FAMILIES = {'visual.layer1.': "CLIP's ResNet", 'visual.transformer.': 'a ViT',
             'visual.trunk.': 'one of timm', 'visual.': 'of another kind'}


def read_clip_weights(source: str, wanted: dict[str, Tensor],
                      dropped: Container[str] = (), *,
                      model_name: str | None = None,
                      quick_gelu: bool = True) -> dict[str, Tensor]:
    """Read CLIP's weights for a backbone of the same size.

    Args:
        source (str): A file in the layout of OpenAI or open_clip: OpenAI's
            TorchScript archive, a state_dict, plain or under the key
            ``state_dict``, or safetensors. Or a pretrained tag of open_clip,
            which is downloaded: ``'open_clip://RN50/openai'``, or with
            model_name ``'open_clip://openai'`` or ``'openai'``.
        wanted (dict[str, Tensor]): The backbone's state_dict. ``connect``,
            the residual branch of its attention pool, is not in CLIP and is
            kept. A longer text positional embedding is cut. If it has no
            image encoder, that of the file is left out.
        dropped (Container[str]): Names of the file that are left out.
        model_name (str, optional): The backbone's, for a bare tag.
        quick_gelu (bool): The backbone's; must agree with the tag. Files do
            not say which activation they need.

    Returns:
        dict[str, Tensor]: Those wanted, all of them.

    Raises:
        FileNotFoundError: If the file does not exist or cannot be fetched.
        ValueError: If the tag is unknown, or the file holds something else
            or a CLIP of another size.
    """
    path = source
    if tag_of(source, model_name) is not None:
        path = _download(source, model_name, quick_gelu)
    weights = state_dict_of(read_checkpoint(path))
    _refuse_others(path, weights, wanted)
    text_only = not any(name.startswith('visual.') for name in wanted)
    weights = {
        name if name.startswith(('visual.', 'text.')) else f'text.{name}': w
        for name, w in weights.items()
        if not (name in _NOT_NEEDED or name in dropped
                or text_only and name.startswith('visual.'))
    }
    position = 'text.positional_embedding'
    if position in weights:
        weights[position] = weights[position][:len(wanted[position])]

    for name, weight in wanted.items():
        if '.connect.' in name or name.endswith('num_batches_tracked'):
            weights.setdefault(name, weight)
    differences = compare_weights(weights, wanted)
    if differences:
        raise ValueError(
            f"{path} does not hold CLIP's weights of this size:\n"
            f'{differences}\nUse the CLIP that the backbone describes'
            f'{f" ({model_name})" if model_name else ""}, or change the '
            'backbone.')
    return weights


def tag_of(source: str, model_name: str | None
           ) -> tuple[str | None, str, dict] | None:
    """Model, tag and open_clip's settings (empty: none) of what is a tag."""
    if source.startswith(_TAG_PREFIX):
        *named, tag = source.removeprefix(_TAG_PREFIX).split('/')
        name = '/'.join(named) or model_name
    elif model_name is not None and open_clip.pretrained.is_pretrained_cfg(
            model_name, source):
        name, tag = model_name, source
    else:
        return None
    return name, tag, open_clip.get_pretrained_cfg(name, tag) if name else {}


def _family(names: Iterable[str]) -> str | None:
    """What kind of image encoder these names of CLIP's weights are of."""
    for prefix, family in _FAMILIES.items():
        if any(name.startswith(prefix) for name in names):
            return family
    return None


def _refuse_others(path: str, weights: dict, wanted: dict) -> None:
    """Raise if a file does not hold the CLIP wanted; say what it holds."""

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in weights)

    if has('neck.', 'decode_head.', 'decoder.', 'proj.', 'backbone.'):
        found = ('a whole CRIS, not CLIP: name it as load_from or on the '
                 'command line (one of the official code after '
                 'tools/model_converters/official_cris.py), not in the '
                 'init_cfg of the backbone')
    elif has('vision_model.'):
        found = ('a CLIP of the transformers package: its names are not '
                 'those of OpenAI or open_clip')
    elif has('visual.'):
        theirs, ours = _family(weights), _family(wanted)
        if not has('token_embedding.', 'text.'):
            found = 'the image encoder of a CLIP without its text encoder'
        elif ours in (None, theirs):
            return
        else:
            found = (f'a CLIP whose image encoder is {theirs}, but the '
                     f"backbone's is {ours}: change model_name, or the "
                     'weights')
    elif has('layer1.', 'conv1.', 'stem.'):
        found = ('an image classifier, not CLIP: the text encoder and the '
                 'attention pool are missing')
    else:
        found = ('weights of another model than CLIP: none of its '
                 f'{len(weights)} names starts with '
                 f"'visual.', e.g. {sorted(weights)[:3]}")
    raise ValueError(f'{path} holds {found}')


def _download(source: str, model_name: str | None, quick_gelu: bool) -> str:
    """Download the file of a tag into open_clip's cache, if need be."""
    name, tag, cfg = tag_of(source, model_name)
    if name is None:
        raise ValueError(f'{source} does not name the model of the tag: write '
                         f'{_TAG_PREFIX}MODEL/{tag}')
    if not cfg:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(f'open_clip has no weights {tag!r} of {name!r}; it '
                         f'has {tags or "none of this model"}')
    trained_with = bool(cfg.get('quick_gelu'))
    if trained_with != quick_gelu:
        raise ValueError(
            f'the weights {tag!r} of {name} were trained with quick_gelu='
            f'{trained_with}: set quick_gelu={trained_with} in the backbone')
    # The first process downloads, then one on each machine, as machines may
    # share the cache or not; the others read it. If one fails, all end: they
    # would wait for it until the time-out.
    path, problem = '', None
    first_here = int(os.environ.get('LOCAL_RANK', 0)) == 0
    for has_turn in (is_main_process(), first_here, True):
        if has_turn:
            try:
                path = open_clip.download_pretrained(cfg)
            except Exception as error:  # any error of the network or the hub
                problem = str(error) or repr(error)
        problems = [p for p in all_gather_object(problem) if p is not None]
        if problems:
            raise FileNotFoundError(
                f'the weights {tag!r} of {name} could not be downloaded: '
                f'{problems[0]}\nOn a machine without network access, give a '
                'file: --cfg-options '
                'model.backbone.init_cfg.checkpoint=RN50.pt')
    return path
