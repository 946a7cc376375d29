# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The page of web_demo.py and the functions behind it."""
import argparse
import html
import os
import os.path as osp
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
from pycocotools import mask as coco_mask

from cris.apis.inferencer import CRISInferencer
from cris.apis.inputs import InputImage, load_image
from cris.apis.model_zoo import DEFAULT_MODEL
from cris.apis.predictions import make_prediction
from cris.apis.writer import PredictionWriter
from cris.io.files import read_bytes
from cris.io.images import open_image
from cris.models.head import Answer
from cris.visualization import draw

EXAMPLES = [
    ['shapes_1.jpg', 'the yellow triangle\nthe rightmost triangle'],
    ['shapes_2.jpg', 'the blue one\nthe rightmost big thing'],
]
_TABLE = """
<style>#scores td, #scores th {{padding: 4px 12px; text-align: left}}
#scores td + td {{white-space: nowrap}}
#scores td:first-child {{overflow-wrap: anywhere}}
#overlays .caption-label {{white-space: normal; max-width: 100%}}</style>
<table><tr><th>phrase</th><th>confidence</th><th>pixels</th></tr>{rows}</table>
<p>{seconds:.2f} s for the image and {phrases} phrases</p>"""
KEPT = 3600  # seconds that uploads and answers are kept
SHOWN_SIDE = 1024  # pixels of an overlay; masks have the original size


class State(NamedTuple):
    """State of a session: about 40 KB per expression at 416 pixels."""
    answer: Answer
    texts: list[str]
    shape: tuple[int, int]
    shown: np.ndarray  # RGB, uint8
    file: str  # name of the image file
    seconds: float


class Page:
    """The functions behind the page; args hold its limits.

    Settings are a threshold of the pixels, whether to show the parts, and a
    threshold of existence if the model has one.
    """

    def __init__(self, inferencer: CRISInferencer, args: argparse.Namespace):
        self.inferencer = inferencer
        self.args = args

    def ask(self, path: str | None, phrases: str,
            *settings) -> tuple[State, list, str]:
        """Run the model; the state, and the results of :meth:`show`."""
        start = time.perf_counter()
        try:
            texts = [t for t in map(str.strip, phrases.splitlines()) if t]
            if not texts:
                raise ValueError('Type what to look for, one phrase per line.')
            if len(texts) > self.args.max_phrases:
                raise ValueError(
                    f'{len(texts)} phrases are too many for this page: at '
                    f'most {self.args.max_phrases} at once.')
            image = self._load(path)
            with self.inferencer.open(image) as view:
                answer = view.answer(texts)
        except (OSError, TypeError, ValueError) as error:
            raise gr.Error(
                html.escape(str(error)), print_exception=False) from error
        for message in self.inferencer.find_long_texts(texts):
            gr.Warning(html.escape(message))
        shown = draw.scale_image(
            image.bgr[..., ::-1], min(1, SHOWN_SIDE / max(image.shape)))
        state = State(answer, texts, image.shape, shown, osp.basename(path),
                      time.perf_counter() - start)
        return state, *self.show(state, *settings)

    def _load(self, path: str | None) -> InputImage:
        if not path:
            raise ValueError('Upload an image first, or choose an example.')
        name, limit = osp.basename(path), self.args.max_megapixels
        content = read_bytes(path)
        header = open_image(content, name)
        if header.width * header.height > limit * 1e6:
            raise ValueError(
                f'{name} has {header.width} x {header.height} pixels, more '
                f'than the {limit:g} megapixels that this page accepts: scale '
                'it down.')
        return load_image(content, name)

    def show(self, state: State | None, *settings) -> tuple[list, str]:
        """Overlays and scores with the settings; the model does not run."""
        if state is None:
            return [], ''
        prediction = self._predict(state, *settings)
        overlays, rows = [], []
        for k, text in enumerate(state.texts):
            text = draw.cut(text, 80)
            score, remark = draw.verdict(prediction, k)
            overlays.append((draw.draw_answer(state.shown, prediction, k),
                             '  '.join(filter(None, (text, score, remark)))))
            pixels = int(coco_mask.area(prediction['rles'][k]))
            found = ' in '.join(
                filter(None, (pixels and f'{pixels:,}', remark)))
            rows.append(f'<tr><td>{html.escape(text)}</td>'
                        f'<td>{score}</td><td>{found}</td></tr>')
        return overlays, _TABLE.format(
            rows=''.join(rows), seconds=state.seconds, phrases=len(rows))

    def archive(self, state: State | None, *settings) -> str | None:
        """Write what is shown as a zip file; gradio deletes it later."""
        if state is None:
            return None
        name = osp.splitext(state.file)[0]
        prediction = dict(self._predict(state, *settings), name=name,
                          img_path=state.file)
        # gradio deletes files of its own folder only.
        target = tempfile.mkdtemp(dir=os.environ.get('GRADIO_TEMP_DIR'))
        with tempfile.TemporaryDirectory() as folder:
            with PredictionWriter(folder) as writer:
                writer.write(
                    prediction,
                    draw.draw_prediction(state.shown, prediction))
            return shutil.make_archive(
                osp.join(target, f'{name}_masks'), 'zip', folder)

    def _predict(self, state: State, threshold: float, parts: bool = False,
                 existence_threshold: float | None = None) -> dict:
        return make_prediction(
            self.inferencer.model, state.answer, state.shape, state.texts,
            threshold, existence_threshold, parts, return_masks=False)


def build(page: Page) -> gr.Blocks:
    """The page."""
    args = page.args
    model = args.config or args.model or DEFAULT_MODEL
    knows = ', which knows coloured shapes only' * (model == DEFAULT_MODEL)
    kept = (600, KEPT)  # looked at every 600 seconds
    with gr.Blocks(title='CRIS', fill_width=True, delete_cache=kept) as blocks:
        gr.Markdown(
            '# CRIS: segment things with words\n'
            f'The model: `{osp.basename(model)}`{knows}. Up to '
            f'{args.max_megabytes:g} MB, {args.max_megapixels:g} megapixels '
            f'and {args.max_phrases} phrases at once.')
        state = gr.State(time_to_live=KEPT)
        head = page.inferencer.model.decode_head
        with gr.Row():
            with gr.Column():
                image = gr.Image(label='Image', type='filepath',
                                 sources=['upload', 'clipboard'],
                                 elem_id='image')
                # gradio would open the file first and fail with unclear
                # errors. A subclass is no way out: gradio writes a .pyi file
                # beside the module of every subclass.
                image.preprocess = lambda file: file and file.path
                phrases = gr.Textbox(label='Phrases, one per line', lines=4,
                                     elem_id='phrases')
                ask = gr.Button('Segment', variant='primary', elem_id='ask')
                settings = [
                    gr.Slider(0, 1, head.threshold, step=0.01,
                              label='Threshold of the probability',
                              elem_id='threshold'),
                    gr.Checkbox(label='Connected parts, with boxes',
                                elem_id='parts')]
                if head.existence is not None:
                    settings.append(gr.Slider(
                        0, 1, head.existence_threshold, step=0.01,
                        label='Threshold of existence', elem_id='existence',
                        info='Below it, nothing is found.'))
                folder = Path(__file__).parent
                gr.Examples([[str(folder / name), texts]
                             for name, texts in EXAMPLES], [image, phrases])
            with gr.Column():
                overlays = gr.Gallery(
                    label='Overlays', columns=2, elem_id='overlays',
                    show_label=False,  # it would cover the first overlay
                    object_fit='contain')  # do not crop the images
                scores = gr.HTML(elem_id='scores')
                masks = gr.Button('Download masks (zip)', elem_id='masks')
                # A download button serves a file that exists already.
                archive = gr.DownloadButton(visible='hidden',
                                            elem_id='archive')
        shown = [overlays, scores]
        ask.click(page.ask, [image, phrases, *settings], [state, *shown])
        for setting in settings:
            setting.change(page.show, [state, *settings], shown,
                           trigger_mode='always_last')
        masks.click(page.archive, [state, *settings], archive).success(
            None, None, None,
            js="() => document.querySelector('#archive').click()")
    return blocks.queue(max_size=args.max_waiting,
                        default_concurrency_limit=1)
