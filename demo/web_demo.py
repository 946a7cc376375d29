# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A web page to ask a model about pictures: python demo/web_demo.py."""
import argparse
import os
import os.path as osp
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

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

from cris import CRISInferencer  # noqa: E402
from cris.apis.inputs import load_picture  # noqa: E402
from cris.apis.predictions import (  # noqa: E402
    PredictionWriter,
    draw_prediction,
    make_prediction,
)
from cris.datasets.files import open_image  # noqa: E402
from cris.visualization.draw import draw_masks  # noqa: E402

EXAMPLES = [
    ['shapes_1.jpg', 'the yellow triangle\nthe rightmost triangle'],
    ['shapes_2.jpg', 'the blue one\nthe rightmost big thing'],
]
SHOWN_SIDE = 1024  # pixels of an overlay; masks are of the original size


class Answer(NamedTuple):
    """What a session keeps: some 40 KB an expression at 416 pixels."""
    logits: Tensor
    texts: List[str]
    shape: Tuple[int, int]
    shown: np.ndarray  # RGB, uint8
    name: str
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

    def ask(self, path: Optional[str], phrases: str,
            threshold: float) -> tuple:
        """Run the model once; the state and what :meth:`show` returns."""
        start = time.perf_counter()
        texts = self._check_phrases(phrases)
        try:
            picture = self._load(path)
            with self.inferencer.open(picture) as view:
                logits = view.logits(texts)
        except (OSError, TypeError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        for message in self.inferencer.find_long_texts(texts):
            gr.Warning(message)
        height, width = picture.image.shape[:2]
        scale = min(1, SHOWN_SIDE / max(height, width))
        shown = cv2.resize(
            picture.image, (max(1, round(scale * width)),
                            max(1, round(scale * height))),
            interpolation=cv2.INTER_AREA)[..., ::-1]
        answer = Answer(logits, texts, (height, width), shown, picture.name,
                        time.perf_counter() - start)
        return answer, *self.show(answer, threshold)

    def _check_phrases(self, phrases: str) -> List[str]:
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

    def _load(self, path: Optional[str]):
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

    def show(self, answer: Optional[Answer], threshold: float) -> tuple:
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
        overlays, rows = [], ['| phrase | confidence | pixels |', '|-|-|-|']
        for text, score, rle in zip(
                *(prediction[k] for k in ('expressions', 'scores', 'rles')),
                strict=True):
            mask = coco_mask.decode(rle)
            small = cv2.resize(
                mask, (width, height), interpolation=cv2.INTER_NEAREST)
            text = text[:80].replace('|', '/').replace('<', '&lt;')
            overlays.append((draw_masks(answer.shown, pred=small.astype(bool)),
                             f'{text}  {score:.2f}'))
            rows.append(f'| {text} | {score:.2f} | {mask.sum():,} |')
        rows.append(f'\n{answer.seconds:.2f} s for the picture and '
                    f'{len(answer.texts)} phrases')
        return overlays, '\n'.join(rows), self._archive(answer, prediction)

    @staticmethod
    def _archive(answer: Answer, prediction: dict) -> str:
        folder = Path(_FILES.name, uuid.uuid4().hex)
        prediction = dict(prediction, name='picture', img_path=answer.name)
        try:
            writer = PredictionWriter(str(folder / 'all'))
            writer.write(prediction, draw_prediction(answer.shown, prediction))
            writer.close()
            archive = shutil.make_archive(
                str(folder.with_suffix('')) + '_masks', 'zip', folder / 'all')
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return archive


def build(page: Page) -> gr.Blocks:
    """The page."""
    args = page.args
    head = page.inferencer.model.decode_head
    with gr.Blocks(title='CRIS', delete_cache=(600, 3600)) as blocks:
        gr.Markdown(
            '# CRIS: point at things with words\n'
            f'Up to {args.max_megabytes:g} MB, {args.max_megapixels:g} '
            f'megapixels and {args.max_phrases} phrases at once.')
        answer = gr.State(time_to_live=3600)
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
                    label='Overlays', columns=2, elem_id='overlays')
                scores = gr.Markdown(elem_id='scores')
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
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    try:
        inferencer = CRISInferencer(args.config or args.model, args.checkpoint,
                                    args.device)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    page = build(Page(inferencer, args))
    try:
        page.launch(
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


if __name__ == '__main__':
    main()
