# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Convert a checkpoint of the official CRIS code to this project's."""
import re

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


def our_name(name: str) -> str:
    for pattern, ours in _RULES:
        renamed, changed = re.subn('^' + pattern, ours, name)
        if changed:
            return renamed
    return name


def to_ours(state_dict: dict) -> dict:
    return {
        our_name(name): tensor
        for name, tensor in state_dict.items()
        if name != 'backbone.logit_scale'
    }
