# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Run a model on images.

Shapes: B images with K expressions each, E expressions in total; L tokens.
"""
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.infer import BaseInferencer
from mmseg.registry import TRANSFORMS
from torch import Tensor, nn

from cris.datasets.tokenizer import count_tokens
from cris.datasets.transforms import TokenizeExpressions, without_loading
from cris.engine.inference import optimize_for_inference
from cris.models.cris import ImageFeatures
from cris.models.head import Answer
from cris.visualization.draw import draw_prediction

from .inputs import (
    ImageSource,
    InputImage,
    Texts,
    check_texts,
    list_images,
    load_image,
    match_texts,
)
from .model_zoo import DEFAULT_MODEL, init_model, list_models
from .predictions import make_prediction, to_data_sample
from .writer import PredictionWriter


class View:
    """An image encoded once, see :meth:`CRISInferencer.open`."""

    def __init__(self, inferencer: 'CRISInferencer', image: InputImage):
        (batch, ) = inferencer.preprocess([image], texts=[[]])
        self.image = image
        self._inferencer = inferencer
        self._features = inferencer.encode(batch)

    def __call__(self, texts: str | Sequence[str], **kwargs) -> dict:
        """A dict as in the inferencer's ``predictions``; same kwargs."""
        return self._inferencer.describe(
            self.image, check_texts(texts), self.answer(texts), **kwargs)

    def answer(self, texts: str | Sequence[str]) -> Answer:
        """Only what the model says, for make_prediction."""
        if self._features is None:
            raise ValueError(f'the view of {self.image.name} is closed: open '
                             'the image again')
        texts = check_texts(texts)
        return self._inferencer.answer(
            self._features, texts,
            torch.zeros(len(texts), dtype=torch.long))

    def close(self) -> None:
        """Free the memory of the encoded image."""
        self._features = None

    def __enter__(self) -> 'View':
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class CRISInferencer(BaseInferencer):
    """Segments what expressions refer to in images.

    >>> inferencer = CRISInferencer()
    >>> result = inferencer('street.jpg', ['leftmost car', 'the sky'])
    >>> result['predictions'][0]['masks']  # bool (2, h, w)

    Args:
        model (str | Path | Config | nn.Module, optional): A name of
            :func:`cris.list_models`, a config file, or a config. None means
            the small model whose weights come with the package. A module,
            such as a :class:`cris.deploy.ExportedCRIS`, is set to eval mode
            and not changed otherwise; its ``cfg`` must be its config.
        weights (str | Path, optional): Checkpoint, read without executing
            code. None means the weights of the model zoo.
        device (str | torch.device, optional): Defaults to the GPU if there
            is one.
        precision (str): 'fp32', 'bf16' or, on a GPU, 'fp16'.

    Raises:
        ValueError: If the model, the precision or the device does not exist,
            or the weights do not fit the model or are not plain tensors.
        FileNotFoundError: If a file does not exist.
    """

    preprocess_kwargs = {'texts'}
    forward_kwargs = {'threshold', 'existence_threshold', 'instances',
                      'return_masks', 'return_probs'}
    visualize_kwargs = {'show'}
    postprocess_kwargs = {'return_datasamples'}

    # mmengine's constructor would read the checkpoint in an unsafe way.
    def __init__(self,
                 model: str | os.PathLike | Config | nn.Module | None = None,
                 weights: str | os.PathLike | None = None,
                 device: str | torch.device | None = None,
                 precision: str = 'fp32'):
        if model is None and weights is not None:
            raise ValueError('weights are given without a model: give the '
                             'config file, or the name in the model zoo, that '
                             'they were trained with')
        if not isinstance(model, nn.Module):
            model = optimize_for_inference(
                init_model(model or DEFAULT_MODEL, weights, device), precision)
        elif (weights, device, precision) != (None, None, 'fp32'):
            raise ValueError('weights, device and precision cannot be '
                             'changed for a model that is already built')
        if 'test_dataloader' not in getattr(model, 'cfg', {}):
            raise ValueError('the model has no config with a test_dataloader, '
                             'whose transforms are needed: build it with '
                             'init_model(config), or set model.cfg')
        self.model = model.eval()
        self.device = model.data_preprocessor.device
        self.cfg = model.cfg
        self.pipeline = self._init_pipeline(self.cfg)
        self._tokenize = next(
            (transform for transform in self.pipeline.transforms
             if isinstance(transform, TokenizeExpressions)), None)
        if self._tokenize is None:
            raise ValueError(
                'the test pipeline has no TokenizeExpressions: add '
                "dict(type='TokenizeExpressions', context_length=...) to "
                'test_dataloader.dataset.pipeline')

    list_models = staticmethod(list_models)

    def _init_pipeline(self, cfg: Config) -> Compose:
        pipeline = without_loading(cfg.test_dataloader.dataset.pipeline)
        return Compose([TRANSFORMS.build(t) for t in pipeline])

    def __call__(self, inputs: ImageSource | Sequence[ImageSource],
                 texts: Texts, batch_size: int = 1, return_vis: bool = False,
                 out_dir: str | os.PathLike | None = None, **kwargs) -> dict:
        """Segment what expressions refer to.

        Args:
            inputs: An image, a list of images, or a folder, see
                :func:`cris.apis.inputs.load_image`.
            texts (str | list[str] | list[list[str]]): One or more expressions
                for every image, or a list for each image.
            batch_size (int): Number of images encoded at once.
            return_vis (bool): Return the drawings of :meth:`visualize`.
            out_dir (str | Path, optional): Folder for the results, see
                :class:`cris.apis.writer.PredictionWriter`.
            **kwargs: ``threshold``, ``existence_threshold``, ``instances``,
                ``return_masks`` and ``return_probs`` of
                :func:`cris.apis.predictions.make_prediction`; ``show`` of
                :meth:`visualize`; ``return_datasamples``: SegDataSamples like
                those of :meth:`cris.models.CRIS.predict`.

        Returns:
            dict: ``predictions``, a dict for each image: that of
            ``make_prediction`` with ``name`` and ``img_path``;
            ``visualization``, a drawing for each image, or none.

        Raises:
            FileNotFoundError, ValueError, TypeError: If an image does not
                exist, or an image, an expression or an option is invalid.
                Earlier results are in ``out_dir``.
        """
        sources = list_images(inputs)
        preprocess, forward, visualize, postprocess = self._dispatch_kwargs(
            texts=match_texts(texts, len(sources)), **kwargs)
        _check_options(batch_size, forward, visualize, postprocess)
        predictions, visualization = [], []
        with PredictionWriter(out_dir) if out_dir else nullcontext() as writer:
            for batch in self.preprocess(sources, batch_size, **preprocess):
                preds = self.forward(batch, **forward)
                predictions += preds
                if not (writer or return_vis or visualize.get('show')):
                    continue
                drawn = self.visualize(batch['images'], preds, **visualize)
                if return_vis:
                    visualization += drawn
                if writer:
                    for pred, overlay in zip(preds, drawn, strict=True):
                        writer.write(pred, overlay)
        return self.postprocess(predictions, visualization, **postprocess)

    def preprocess(self, inputs: Sequence[ImageSource], batch_size: int = 1,
                   texts: Sequence[Sequence[str]] = ()) -> Iterator[dict]:
        """Decode, letterbox and tokenize, a batch at a time.

        Yields:
            dict: ``inputs`` and ``data_samples`` as in tools/test.py, and
            ``images``, the B decoded images.
        """
        for chunk in self._get_chunk_data(
                enumerate(zip(inputs, texts, strict=True)), batch_size):
            yield pseudo_collate([
                self._sample(load_image(source, f'image_{i}'), texts_i)
                for i, (source, texts_i) in chunk])

    def _sample(self, image: InputImage, texts: Sequence[str]) -> dict:
        data = self.pipeline(dict(
            img=image.bgr, img_shape=image.shape, ori_shape=image.shape,
            img_path=image.path, expressions=list(texts),
            ref_index=list(range(len(texts)))))
        return dict(data, images=image)

    def find_long_texts(self, texts: Sequence[str]) -> list[str]:
        """A message for each text that the model reads only in part."""
        limit = self._tokenize.context_length
        lengths = ((text, count_tokens(text)) for text in texts)
        return [f'{text[:40]!r}... has {length} tokens, but the model reads '
                f'{limit}: the rest is ignored'
                for text, length in lengths if length > limit]

    def forward(self, inputs: dict, **kwargs) -> list[dict]:
        """Predictions of a batch of :meth:`preprocess`, see __call__."""
        texts = [sample.expressions for sample in inputs['data_samples']]
        counts = [len(texts_i) for texts_i in texts]
        answer = self.answer(
            self.encode(inputs), sum(texts, []),
            torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
        parts = [[None] * len(counts) if x is None else x.split(counts)
                 for x in answer]
        return [self.describe(*each, **kwargs) for each in zip(
            inputs['images'], texts, map(Answer, *parts), strict=True)]

    @torch.inference_mode()
    def encode(self, inputs: dict) -> ImageFeatures:
        """Image features of a batch of :meth:`preprocess`."""
        data = self.model.data_preprocessor(
            dict(inputs=inputs['inputs']), training=False)
        return self.model.encode_image(data['inputs'])

    @torch.inference_mode()
    def answer(self, features: ImageFeatures, texts: Sequence[str],
               image_index: Tensor) -> Answer:
        """As of CRIS.answer, fp32 on the CPU.

        Warns of texts that are too long.
        """
        for message in self.find_long_texts(texts):
            warnings.warn(message, stacklevel=2)
        tokens = self._tokenize(dict(expressions=texts))['tokens']
        answer = self.model.answer(features, tokens.to(self.device),
                                   image_index.to(self.device))
        return Answer(*(None if x is None else x.cpu() for x in answer))

    def describe(self, image: InputImage, texts: Sequence[str],
                 answer: Answer, **kwargs) -> dict:
        """:func:`make_prediction`, with the name and path of the image."""
        prediction = make_prediction(self.model, answer, image.shape, texts,
                                     **kwargs)
        return dict(prediction, name=image.name, img_path=image.path)

    def open(self, image: ImageSource | InputImage) -> View:
        """Encode an image once; expressions cost their text and decoder only.

        >>> with inferencer.open('street.jpg') as view:
        ...     view('leftmost car')['masks']
        """
        return View(self, load_image(image))

    def visualize(self, inputs: Sequence[InputImage], preds: Sequence[dict],
                  show: bool = False) -> list[np.ndarray]:
        """Drawings of predictions, RGB, see :func:`draw_prediction`.

        With ``show``, each is in a window until a key is pressed.
        """
        drawn = [draw_prediction(image.bgr[..., ::-1], pred)
                 for image, pred in zip(inputs, preds, strict=True)]
        if show:
            for image, sheet in zip(inputs, drawn, strict=True):
                cv2.imshow(image.name, sheet[..., ::-1])
                cv2.waitKey()
        return drawn

    def postprocess(self, preds: list[dict], visualization: list[np.ndarray],
                    return_datasamples: bool = False) -> dict:
        """Pack predictions and drawings, optionally as SegDataSamples."""
        if return_datasamples:
            preds = [to_data_sample(pred) for pred in preds]
        return dict(predictions=preds, visualization=visualization)


def _check_options(batch_size: int, forward: dict, visualize: dict,
                   postprocess: dict) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'batch_size={batch_size!r} must be an integer >= 1')
    if postprocess.get('return_datasamples') and not forward.get(
            'return_masks', True):
        raise ValueError('return_datasamples=True needs the masks: leave out '
                         'return_masks=False')
    # Without a display, Qt would abort the process.
    if (visualize.get('show') and sys.platform.startswith('linux')
            and not {'DISPLAY', 'WAYLAND_DISPLAY'} & set(os.environ)):
        raise ValueError('show=True needs a screen, but DISPLAY is not set: '
                         'use return_vis=True or out_dir=DIR')
