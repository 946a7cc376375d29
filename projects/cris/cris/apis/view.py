# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from .inputs import Picture, check_texts

if TYPE_CHECKING:
    from .inferencer import CRISInferencer


class View:
    """A picture that is encoded already; CRISInferencer.open makes it.

    A further expression costs only the model's text side and decoder.

    Args:
        inferencer (CRISInferencer): Whose model answers.
        picture (Picture): What it is asked about.
    """

    def __init__(self, inferencer: 'CRISInferencer', picture: Picture):
        self.picture = picture
        self._inferencer = inferencer
        self._features = inferencer.encode(
            pseudo_collate([inferencer.prepare(picture, [])]))

    def __call__(self, texts: str | Sequence[str], **kwargs) -> dict:
        """Ask about the picture.

        Args:
            texts (str | list[str]): K expressions.
            **kwargs: Of :func:`cris.apis.predictions.make_prediction`.

        Returns:
            dict: Like an entry of the inferencer's ``predictions``.

        Raises:
            ValueError: If an expression is empty, or the view is closed.
        """
        texts = check_texts(texts)
        return self._inferencer.describe(self.picture, texts,
                                         self.logits(texts), **kwargs)

    def logits(self, texts: str | Sequence[str]) -> Tensor:
        """The logits alone, ``(K, 1, H/4, W/4)``, for make_prediction."""
        if self._features is None:
            raise ValueError(f'the view of {self.picture.name} is closed: '
                             'open the picture again')
        texts = check_texts(texts)
        return self._inferencer.answer(
            self._features, texts, torch.zeros(len(texts), dtype=torch.long))

    def close(self) -> None:
        """Free the memory of the encoded picture."""
        self._features = None

    def __enter__(self) -> 'View':
        return self

    def __exit__(self, *exception) -> None:
        self.close()
