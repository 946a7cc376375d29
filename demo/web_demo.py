# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A web page to ask a model about pictures: python demo/web_demo.py."""



import argparse
import html
import os
import os.path as osp
import shutil
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

# Before gradio is imported: it asks nobody anything, and what it keeps goes
# with the process.
os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1')
_FILES = tempfile.TemporaryDirectory(prefix='cris_web_demo_')
os.environ['GRADIO_TEMP_DIR'] = _FILES.name
try:
    import gradio as gr
except ImportError as error:
    raise SystemExit(f'error: the web page needs gradio ({error}): '
                     'pip install -r requirements/demo.txt') from error

from cris import CRISInferencer  # noqa: E402  # noqa: E402
from cris.apis.inferencer import DEFAULT_MODEL  # noqa: E402
from cris.apis.inputs import load_picture  # noqa: E402
from cris.apis.predictions import draw_prediction, make_prediction  # noqa: E402
from cris.apis.writer import PredictionWriter  # noqa: E402
from cris.io.images import open_image  # noqa: E402
from cris.visualization.draw import cut, draw_masks  # noqa: E402

EXAMPLES = [
    ['shapes_1.jpg', 'the yellow triangle\nthe rightmost triangle'],
    ['shapes_2.jpg', 'the blue one\nthe rightmost big thing'],
]
_TABLE = """
<style>#scores td, #scores th {{padding: 4px 12px; text-align: left}}
#scores td + td {{white-space: nowrap}}
#scores td:first-child {{overflow-wrap: anywhere}}</style>
<table><tr><th>phrase</th><th>confidence</th><th>pixels</th></tr>{rows}</table>
<p>{seconds:.2f} s for the picture and {phrases} phrases</p>"""
_ARCHIVES = Path(_FILES.name, 'archives')
KEPT = 3600  # seconds, of uploads and answers
SHOWN_SIDE = 1024  # pixels of an overlay; masks are of the original size


class Answer(NamedTuple):
    """What a session keeps: some 40 KB an expression at 416 pixels."""
    logits: Tensor
    texts: list[str]
    shape: tuple[int, int]
    shown: np.ndarray  # RGB, uint8
    file: str  # of the picture, without its folder
    seconds: float


class Page:
    """The functions behind the page.

    Args:
        inferencer (CRISInferencer): Answers.
        args (argparse.Namespace): The limits.
    """

    def __init__(self, inferencer: CRISInferencer, args: argparse.Namespace):
        self.inferencer = inferencer
        self.args = args

    def ask(self, path: str | None, phrases: str,
            threshold: float) -> tuple:
        """Run the model once; the state and what :meth:`show` returns."""
        start = time.perf_counter()
        texts = self._check_phrases(phrases)
        try:
            picture = self._load(path)
            with self.inferencer.open(picture) as view:
                logits = view.logits(texts)
        except (OSError, TypeError, ValueError) as error:
            raise gr.Error(
                html.escape(str(error)), print_exception=False) from error
        for message in self.inferencer.find_long_texts(texts):
            gr.Warning(html.escape(message))
        height, width = picture.image.shape[:2]
        scale = min(1, SHOWN_SIDE / max(height, width))
        shown = cv2.resize(
            picture.image, (max(1, round(scale * width)),
                            max(1, round(scale * height))),
            interpolation=cv2.INTER_AREA)[..., ::-1]
        answer = Answer(logits, texts, (height, width), shown,
                        osp.basename(path),
                        time.perf_counter() - start)
        return answer, *self.show(answer, threshold)

    def _check_phrases(self, phrases: str) -> list[str]:
        texts = [line.strip() for line in phrases.splitlines()]
        texts = [text for text in texts if text]
        most = self.args.max_phrases
        if not texts:
            raise gr.Error(
                'Type what to look for, one phrase per line.',
                print_exception=False)
        if len(texts) > most:
            raise gr.Error(
                f'{len(texts)} phrases are too many for this page: at most '
                f'{most} at once.',
                print_exception=False)
        return texts

    def _load(self, path: str | None):
        if not path:
            raise ValueError('Upload a picture first, or choose an example.')
        name, most = osp.basename(path), self.args.max_megapixels
        with open(path, 'rb') as file:
            header = open_image(file, name)
        if header.width * header.height > most * 1e6:
            raise ValueError(
                f'{name} has {header.width} x {header.height} pixels, more '
                f'than the {most:g} megapixels that this page takes: make it '
                'smaller.')
        try:
            return load_picture(path)
        except ValueError as error:
            raise ValueError(str(error).replace(path, name)) from error

    def show(self, answer: Answer | None, threshold: float) -> tuple:
        """Overlays, scores and masks at a threshold; no model runs."""
        if answer is None:
            return [], '', None
        prediction = make_prediction(
            self.inferencer.model,
            answer.logits,
            answer.shape,
            answer.texts,
            threshold,
            return_masks=False)
        height, width = answer.shown.shape[:2]
        overlays, rows = [], []
        for text, score, rle in zip(
                *(prediction[k] for k in ('expressions', 'scores', 'rles')),
                strict=True):
            mask = coco_mask.decode(rle)
            small = cv2.resize(
                mask, (width, height), interpolation=cv2.INTER_NEAREST)
            text = cut(text, 80)
            overlays.append((draw_masks(answer.shown, pred=small.astype(bool)),
                             f'{text}  {score:.2f}'))
            count = f'{mask.sum():,}' if mask.any() else 'nothing found'
            rows.append(f'<tr><td>{html.escape(text)}</td>'
                        f'<td>{score:.2f}</td><td>{count}</td></tr>')
        table = _TABLE.format(
            rows=''.join(rows),
            seconds=answer.seconds,
            phrases=len(answer.texts))
        return overlays, table, self._archive(answer, prediction)

    @staticmethod
    def _archive(answer: Answer, prediction: dict) -> str:
        # gradio deletes its own copies alone.
        for old in _ARCHIVES.glob('*'):
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)
        folder = _ARCHIVES / uuid.uuid4().hex
        name = osp.splitext(answer.file)[0]
        prediction = dict(prediction, name=name, img_path=answer.file)
        with PredictionWriter(folder / name) as writer:
            writer.write(prediction, draw_prediction(answer.shown, prediction))
        archive = shutil.make_archive(
            str(folder / f'{name}_masks'), 'zip', folder / name)
        shutil.rmtree(folder / name)
        return archive


def describe_model(args: argparse.Namespace) -> str:
    """For the head of the page."""
    if args.config:
        return f'The model: `{osp.basename(args.config)}`.'
    name = args.model or DEFAULT_MODEL
    knows = ', which knows coloured shapes only' if (
        name == DEFAULT_MODEL) else ''
    return f'The model: `{name}`{knows}.'


def build(page: Page) -> gr.Blocks:
    """The page."""
    args = page.args
    head = page.inferencer.model.decode_head
    with gr.Blocks(
            title='CRIS', fill_width=True, delete_cache=(600,
                                                         KEPT)) as blocks:
        gr.Markdown(
            '# CRIS: point at things with words\n'
            f'{describe_model(args)} Up to {args.max_megabytes:g} MB, '
            f'{args.max_megapixels:g} megapixels and {args.max_phrases} '
            'phrases at once.')
        answer = gr.State(time_to_live=KEPT)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label='Picture',
                    sources=['upload', 'clipboard'],
                    type='filepath',
                    elem_id='picture')
                # gradio would decode it, with messages that tell a user
                # nothing.
                picture.preprocess = lambda file: file and file.path
                phrases = gr.Textbox(
                    label='Phrases, one per line',
                    lines=4,
                    elem_id='phrases')
                ask = gr.Button('Segment', variant='primary', elem_id='ask')
                threshold = gr.Slider(
                    0,
                    1,
                    head.threshold,
                    step=0.01,
                    label='Threshold of the probability',
                    elem_id='threshold')
                folder = Path(__file__).parent
                gr.Examples([[str(folder / name), texts]
                             for name, texts in EXAMPLES], [picture, phrases])
            with gr.Column():
                overlays = gr.Gallery(
                    label='Overlays',
                    show_label=False,  # it would lie on the first
                    columns=2,
                    object_fit='contain',  # the edges belong to the picture
                    elem_id='overlays')
                scores = gr.HTML(elem_id='scores')
                masks = gr.DownloadButton(
                    'Download masks (zip)', elem_id='masks')
        shown = [overlays, scores, masks]
        ask.click(page.ask, [picture, phrases, threshold], [answer, *shown])
        threshold.change(
            page.show, [answer, threshold],
            shown,
            trigger_mode='always_last')
    return blocks.queue(
        max_size=args.max_waiting, default_concurrency_limit=1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='A web page to ask a model about pictures')
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='its weights')
    parser.add_argument('--model', help='instead: a name of the model zoo')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...')
    parser.add_argument(
        '--server-name',
        default='127.0.0.1',
        help='address to listen at (default: %(default)s, this machine only; '
        '0.0.0.0: for everybody)')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument('--max-megabytes', type=float, default=20)
    parser.add_argument('--max-megapixels', type=float, default=25)
    parser.add_argument('--max-phrases', type=int, default=50)
    parser.add_argument(
        '--max-waiting',
        type=int,
        default=16,
        help='questions that wait for their turn; one is answered at a time')
    args = parser.parse_intermixed_args()
    if args.config and args.model:
        parser.error('give CONFIG CHECKPOINT or --model NAME, not both')
    if not 0 <= args.port <= 65535:
        parser.error(f'--port {args.port}: it must be 0 ... 65535')
    return args


def main() -> None:
    args = parse_args()
    try:
        inferencer = CRISInferencer(args.config or args.model, args.checkpoint,
                                    args.device)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    page = build(Page(inferencer, args))
    # Uploads are removed when the process ends by itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        _, address, _ = page.launch(
            quiet=True,
            prevent_thread_lock=True,
            server_name=args.server_name,
            server_port=args.port,
            max_file_size=f'{args.max_megabytes:g}mb',
            share=False,
            # Fonts of the machine: none is fetched.
            theme=gr.themes.Default(
                font=['system-ui', 'sans-serif'], font_mono=['monospace']))
    except OSError as error:
        raise SystemExit(
            f'error: cannot listen at {args.server_name}:{args.port}, which '
            'may be in use: --port and --server-name name others') from error
    print(f'The page is at {address} (Ctrl-C ends it)', flush=True)
    page.block_thread()


if __name__ == '__main__':
    main()
