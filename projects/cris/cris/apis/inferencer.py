# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Ask a model about pictures.

Shapes: B pictures with K expressions each, E of them in all; L tokens.
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
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample
from rich.progress import track
from torch import Tensor, nn

from cris.datasets.tokenizer import count_tokens
from cris.datasets.transforms import TokenizeExpressions
from cris.engine import optimize_for_inference
from cris.models.cris import ImageFeatures

from .inputs import (
    Picture,
    PictureSource,
    Texts,
    list_pictures,
    load_picture,
    match_texts,
)
from .model_zoo import init_model, list_models
from .predictions import draw_prediction, make_prediction
from .view import View
from .writer import PredictionWriter

#: The model for those who name none; its weights come with the package.
DEFAULT_MODEL = 'cris_tiny_1xb8-3e_refshapes-160x160'
# They read the files of a data set, which are not there.
_OF_DATA_SETS = ('LoadReferImage', 'LoadImageFromFile', 'ChooseExpressions',
                 'LoadReferMasks')


class CRISInferencer(BaseInferencer):
    """Masks of what expressions refer to, in any picture.

    >>> inferencer = CRISInferencer()
    >>> result = inferencer('street.jpg', ['leftmost car', 'the sky'])
    >>> result['predictions'][0]['masks']  # bool (2, h, w)

    Args:
        model (str | Path | Config | nn.Module, optional): A name of
            :func:`cris.list_models`, a config file, or a config. None stands
            for the small model whose weights come with the package. A model
            that is made already, such as a
            :class:`cris.deploy.ExportedCRIS`, is put into eval mode and used
            as it is; its ``cfg`` is its config.
        weights (str | Path, optional): Checkpoint, read without executing
            anything. None takes those of the model zoo.
        device (str | torch.device, optional): Defaults to the GPU if there
            is one.
        precision (str): 'fp32', 'bf16' or, on a GPU, 'fp16'. Defaults to
            'fp32'.
        show_progress (bool): Show a progress bar. Defaults to False.

    Raises:
        ValueError: If there is no such model, the weights are of another
            architecture or no plain tensors, the precision is unknown, or
            there is no such device.
        FileNotFoundError: If a file does not exist.
    """

    preprocess_kwargs = {'texts'}
    forward_kwargs = {'threshold', 'return_masks', 'return_probs'}
    visualize_kwargs = {'show', 'wait_time'}
    postprocess_kwargs = {'return_datasamples'}

    # mmengine's would read the checkpoint in a way that may run its code.
    def __init__(self,
                 model: str | os.PathLike | Config | nn.Module | None = None,
                 weights: str | os.PathLike | None = None,
                 device: str | torch.device | None = None,
                 precision: str = 'fp32',
                 show_progress: bool = False):
        if model is None and weights is not None:
            raise ValueError('weights are given without a model: name the '
                             'config file or the model of the model zoo that '
                             'they were trained with')
        if isinstance(model, nn.Module):
            if (weights, device, precision) != (None, None, 'fp32'):
                raise ValueError('weights, device and precision are for a '
                                 'model that is made here; this one is made')
            model.eval()
        else:
            model = optimize_for_inference(
                init_model(model or DEFAULT_MODEL, weights, device), precision)
        if 'test_dataloader' not in getattr(model, 'cfg', {}):
            raise ValueError('the model has no config with a test_dataloader, '
                             'whose transforms are needed: init_model(config) '
                             'makes one that has; or set model.cfg')
        self.model = model
        self.device = model.data_preprocessor.device
        self.cfg = self.model.cfg
        self.pipeline = self._init_pipeline(self.cfg)
        (self._tokenize, ) = (t for t in self.pipeline.transforms
                              if isinstance(t, TokenizeExpressions))
        self.collate_fn = pseudo_collate
        self.show_progress = show_progress

    list_models = staticmethod(list_models)

    def _init_pipeline(self, cfg: Config) -> Compose:
        """The transforms of tools/test.py that do not read a data set."""
        pipeline = cfg.test_dataloader.dataset.pipeline
        return Compose([
            TRANSFORMS.build(transform) for transform in pipeline
            if transform['type'] not in _OF_DATA_SETS
        ])

    def __call__(self,
                 inputs: PictureSource | Sequence[PictureSource],
                 texts: Texts,
                 batch_size: int = 1,
                 return_vis: bool = False,
                 out_dir: str | None = None,
                 **kwargs) -> dict:
        """Ask about pictures.

        Args:
            inputs: A picture, a list of them, or a folder, see
                :func:`cris.apis.inputs.load_picture`.
            texts (str | list[str] | list[list[str]]): What to look for: one
                expression or several, asked of every picture, or a list for
                each picture.
            batch_size (int): Pictures that are encoded at once. Defaults
                to 1.
            return_vis (bool): Return the pictures of :meth:`visualize`.
                Defaults to False.
            out_dir (str, optional): A folder that
                :class:`cris.apis.prediction_writer.PredictionWriter` fills.
            **kwargs: ``threshold``, ``return_masks`` and ``return_probs`` of
                :func:`cris.apis.predictions.make_prediction`; ``show`` and
                ``wait_time`` of :meth:`visualize`; ``return_datasamples`` of
                :meth:`postprocess`.

        Returns:
            dict: ``predictions``, a dict for each picture: what
            ``make_prediction`` returns, with ``name`` and ``img_path``;
            ``visualization``, a picture for each or none.

        Raises:
            FileNotFoundError: If a picture does not exist. The answers before
                it are in ``out_dir`` then, as with the next two.
            ValueError: If a picture, an expression or an option cannot be
                used.
            TypeError: If an input is of a kind that is not known.
        """
        sources = list_pictures(inputs)
        preprocess, forward, visualize, postprocess = self._dispatch_kwargs(
            texts=match_texts(texts, len(sources)), **kwargs)
        _check_options(batch_size, forward, visualize, postprocess)
        batches = self.preprocess(sources, batch_size, **preprocess)
        if self.show_progress:
            batches = track(
                batches,
                description='Inference',
                total=-(-len(sources) // batch_size))
        predictions, visualization = [], []
        with PredictionWriter(out_dir) if out_dir else nullcontext() as writer:
            for batch in batches:
                preds = self.forward(batch, **forward)
                predictions += preds
                if not (writer or return_vis or visualize.get('show')):
                    continue
                drawn = self.visualize(batch['pictures'], preds, **visualize)
                if return_vis:
                    visualization += drawn
                if writer:
                    for pred, overlay in zip(preds, drawn, strict=True):
                        writer.write(pred, overlay)
        return self.postprocess(predictions, visualization, **postprocess)

    def preprocess(self,
                   inputs: Sequence[PictureSource],
                   batch_size: int = 1,
                   texts: Sequence[Sequence[str]] = ()) -> Iterator[dict]:
        """Decode, letterbox and tokenize, a batch at a time.

        Args:
            inputs (Sequence): Pictures.
            batch_size (int): B. Defaults to 1.
            texts (Sequence[Sequence[str]]): A list for each picture.

        Yields:
            dict: ``inputs`` and ``data_samples`` as tools/test.py hands them
            to the model, and the ``pictures`` they are of.
        """
        samples = (
            self.prepare(load_picture(source, f'image_{i}'), own)
            for i, (source, own) in enumerate(zip(inputs, texts, strict=True)))
        for chunk in self._get_chunk_data(samples, batch_size):
            yield self.collate_fn(chunk)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(K, L)``; warns of what the model will not read."""
        for message in self.find_long_texts(texts):
            warnings.warn(message, stacklevel=2)
        return self._tokenize(dict(expressions=texts))['tokens']

    def find_long_texts(self, texts: Sequence[str]) -> list[str]:
        """A sentence for each text whose end the model does not read."""
        limit = self._tokenize.context_length
        lengths = [count_tokens(text) for text in texts]
        return [
            f'{text[:40]!r}... has {length} tokens, but the model reads '
            f'{limit}: the rest of it is not used'
            for text, length in zip(texts, lengths, strict=True)
            if length > limit
        ]

    def prepare(self, picture: Picture, texts: Sequence[str]) -> dict:
        """One sample of :meth:`preprocess`."""
        shape = picture.image.shape[:2]
        data = self.pipeline(
            dict(
                img=picture.image,
                img_shape=shape,
                ori_shape=shape,
                img_path=picture.path,
                expressions=list(texts),
                ref_index=list(range(len(texts)))))
        return dict(data, pictures=picture)

    def forward(self, inputs: dict, **kwargs) -> list[dict]:
        """Answer a batch.

        Args:
            inputs (dict): Of :meth:`preprocess`.
            **kwargs: Of :func:`cris.apis.predictions.make_prediction`.

        Returns:
            list[dict]: B predictions, see :meth:`__call__`.
        """
        texts = [sample.expressions for sample in inputs['data_samples']]
        counts = [len(own) for own in texts]
        logits = self.answer(
            self.encode(inputs), sum(texts, []),
            torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
        return [
            self.describe(picture, own, answers, **kwargs)
            for picture, own, answers in zip(
                inputs['pictures'], texts, logits.split(counts), strict=True)
        ]

    @torch.inference_mode()
    def encode(self, inputs: dict) -> ImageFeatures:
        """What all expressions share, of a batch of :meth:`preprocess`."""
        data = self.model.data_preprocessor(
            dict(inputs=inputs['inputs']), training=False)
        return self.model.encode_image(data['inputs'])

    @torch.inference_mode()
    def answer(self, features: ImageFeatures, texts: Sequence[str],
               image_index: Tensor) -> Tensor:
        """Answer expressions.

        Args:
            features (tuple[Tensor]): Of :meth:`encode`.
            texts (Sequence[str]): E of them.
            image_index (Tensor): Which of the B pictures each is about,
                ``(E,)``.

        Returns:
            Tensor: Logits ``(E, 1, H/4, W/4)``, float32 on the CPU.
        """
        return self.model.answer(features,
                                 self.tokenize(texts).to(self.device),
                                 image_index.to(self.device)).cpu()

    def describe(self, picture: Picture, texts: Sequence[str], logits: Tensor,
                 **kwargs) -> dict:
        """:func:`make_prediction`, with the name and path of the picture."""
        prediction = make_prediction(self.model, logits,
                                     picture.image.shape[:2], texts, **kwargs)
        return dict(prediction, name=picture.name, img_path=picture.path)

    def open(self, image: PictureSource | Picture) -> View:
        """Encode a picture once, to ask about it often.

        >>> with inferencer.open('street.jpg') as view:
        ...     view('leftmost car')['masks']

        Args:
            image: See :func:`cris.apis.inputs.load_picture`; or what it
                returned.

        Returns:
            View: To be called with expressions.
        """
        if not isinstance(image, Picture):
            image = load_picture(image)
        return View(self, image)

    def visualize(self,
                  inputs: Sequence[Picture],
                  preds: Sequence[dict],
                  show: bool = False,
                  wait_time: float = 0) -> list[np.ndarray]:
        """Draw predictions.

        Args:
            inputs (Sequence[Picture]): B pictures.
            preds (Sequence[dict]): Their predictions.
            show (bool): Open a window for each. Defaults to False.
            wait_time (float): Seconds to show it; 0 waits for a key.

        Returns:
            list[np.ndarray]: RGB, uint8, see
            :func:`cris.apis.predictions.draw_prediction`.
        """
        drawn = [
            draw_prediction(picture.image[..., ::-1], pred)
            for picture, pred in zip(inputs, preds, strict=True)
        ]
        if show:
            for picture, sheet in zip(inputs, drawn, strict=True):
                cv2.imshow(picture.name, sheet[..., ::-1])
                cv2.waitKey(round(1000 * wait_time))
        return drawn

    def postprocess(self,
                    preds: list[dict],
                    visualization: list[np.ndarray],
                    return_datasamples: bool = False) -> dict:
        """Pack the results.

        Args:
            preds (list[dict]): Of :meth:`forward`.
            visualization (list[np.ndarray]): Of :meth:`visualize`.
            return_datasamples (bool): Turn the predictions, which must have
                their masks, into SegDataSamples like those of
                :meth:`cris.models.CRIS.predict`. Defaults to False.

        Returns:
            dict: ``predictions`` and ``visualization``.
        """
        if return_datasamples:
            preds = [_to_data_sample(pred) for pred in preds]
        return dict(predictions=preds, visualization=visualization)


def _check_options(batch_size: int, forward: dict, visualize: dict,
                   postprocess: dict) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'batch_size={batch_size!r} must be 1 or more')
    if postprocess.get('return_datasamples') and not forward.get(
            'return_masks', True):
        raise ValueError('return_datasamples=True needs the masks: leave out '
                         'return_masks=False')
    # Qt would end the process.
    if (visualize.get('show') and sys.platform.startswith('linux')
            and not {'DISPLAY', 'WAYLAND_DISPLAY'} & set(os.environ)):
        raise ValueError('show=True needs a screen, and none is there '
                         '(DISPLAY is not set): take return_vis=True or '
                         'out_dir=DIR')


def _to_data_sample(prediction: dict) -> SegDataSample:
    sample = SegDataSample(
        metainfo=dict(
            img_path=prediction['img_path'],
            ori_shape=(prediction['height'], prediction['width']),
            expressions=prediction['expressions'],
            scores=prediction['scores']))
    sample.pred_sem_seg = PixelData(
        data=torch.from_numpy(prediction['masks']))
    if 'probs' in prediction:
        sample.seg_logits = PixelData(
            data=torch.from_numpy(prediction['probs']))
    return sample
