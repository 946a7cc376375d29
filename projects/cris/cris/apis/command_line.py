# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The command ``cris-segment``; demo/image_demo.py is the same."""
import argparse
import os.path as osp
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from pycocotools import mask as coco_mask
from rich.progress import track

from cris.version import __version__

from .inferencer import DEFAULT_MODEL, CRISInferencer
from .inputs import check_texts, list_pictures, load_picture
from .predictions import draw_prediction
from .writer import PredictionWriter, write_image

_PICTURES = ('.jpg', '.jpeg', '.png', '.webp')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Segment what phrases refer to, in pictures',
        usage='%(prog)s IMG [IMG ...] [CONFIG CHECKPOINT] --text PHRASE '
        '[options]')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='IMG',
        help='pictures, or folders of them; in the end, for a model of your '
        'own, its config file and its weights')
    parser.add_argument(
        '--model',
        help='instead: a name of the model zoo '
        f'(default: {DEFAULT_MODEL}, which knows coloured shapes)')
    parser.add_argument(
        '--text',
        action='append',
        default=[],
        metavar='PHRASE',
        help='what to look for; may be given again')
    parser.add_argument(
        '--text-file',
        help='a phrase per line, asked of every picture, or FILENAME<TAB>'
        'PHRASE, asked of that picture')
    parser.add_argument(
        '--out-file',
        help='overlay of a single picture (default: NAME_segmented.jpg, here)')
    parser.add_argument(
        '--out-dir',
        help='folder for PNG masks, overlays and predictions.json (default '
        'for several pictures: NAME_segmented, here, after the first of IMG)')
    parser.add_argument(
        '--threshold',
        type=float,
        help="of the probability, in [0, 1] (default: the model's)")
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...')
    parser.add_argument(
        '--precision',
        choices=['fp32', 'bf16', 'fp16'],
        default='fp32',
        help='bf16 is faster where the processor has it, fp16 needs a GPU '
        '(default: %(default)s)')
    parser.add_argument('--version', action='version', version=__version__)
    # CONFIG CHECKPOINT may come after the options.
    args = parser.parse_intermixed_args(argv)
    args.inputs, args.config, args.checkpoint = split_inputs(
        parser, args.inputs)
    if args.config and args.model:
        parser.error('give CONFIG CHECKPOINT or --model NAME, not both')
    several = len(args.inputs) > 1 or osp.isdir(args.inputs[0])
    if several and args.out_file:
        parser.error('--out-file is for a single picture; --out-dir is for '
                     'several')
    if args.out_file and not args.out_file.lower().endswith(_PICTURES):
        parser.error(f'--out-file: end {args.out_file} in one of '
                     f'{", ".join(_PICTURES)}')
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f'--threshold {args.threshold} must be in [0, 1]')
    name = osp.basename(osp.abspath(args.inputs[0]))
    if not osp.isdir(args.inputs[0]):
        name = osp.splitext(name)[0]
    if several and not args.out_dir:
        args.out_dir = f'{name}_segmented'
    elif not args.out_file and not args.out_dir:
        args.out_file = f'{name}_segmented.jpg'
    return args


def split_inputs(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[list[str], str | None, str | None]:
    """IMG ... [CONFIG CHECKPOINT] -> pictures, config, checkpoint."""
    for i, word in enumerate(words):
        if word.endswith('.py'):
            if i == 0:
                parser.error(f'name a picture before the config {word}')
            if len(words) != i + 2:
                parser.error(f'give one CHECKPOINT after the config {word}')
            return words[:i], word, words[-1]
    return words, None, None


def read_text_file(path: str) -> dict[str | None, list[str]]:
    """Phrases by file name; those under None are for every picture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text, or a line lacks its file name or
            its phrase.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'text file {path} does not exist')
    phrases: dict[str | None, list[str]] = {}
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text: {error}') from error
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split('\t', 1)]
        if not any(parts):
            continue
        if not all(parts):
            missing = 'phrase after' if parts[0] else 'file name before'
            raise ValueError(f'{path}, line {number}: no {missing} the tab')
        name, phrase = parts if len(parts) == 2 else (None, *parts)
        phrases.setdefault(name, []).append(phrase)
    return phrases


def assign_texts(args: argparse.Namespace) -> dict[str, list[str]]:
    """What is asked of which picture; raises ValueError if nothing is."""
    phrases = read_text_file(args.text_file) if args.text_file else {}
    common = args.text + phrases.pop(None, [])
    paths = [path for own in args.inputs for path in list_pictures(own)]
    questions = {}
    for path in paths:
        texts = common + phrases.get(osp.basename(path), [])
        if texts:
            questions[path] = check_texts(texts)
    unknown = set(phrases) - {osp.basename(path) for path in paths}
    # A file about many pictures may be used for one of them.
    if unknown and len(paths) > 1:
        raise ValueError(f'{args.text_file} names pictures that are not among '
                         f'those given: {", ".join(sorted(unknown)[:5])}')
    if not questions:
        raise ValueError('nothing is asked: give --text PHRASE or '
                         '--text-file FILE')
    return questions


def check_out_file(out_file: str | None, picture: str) -> None:
    """Refuse to write over the picture."""
    if out_file and osp.exists(out_file) and osp.samefile(out_file, picture):
        raise ValueError(f'--out-file {out_file} is the picture itself: it '
                         'would be lost')


def segment(args: argparse.Namespace) -> list[str]:
    """Answer and write.

    Returns:
        list[str]: What is wrong with pictures that could not be used; the
        others were written.
    """
    questions = assign_texts(args)
    inferencer = CRISInferencer(args.config or args.model, args.checkpoint,
                                args.device, args.precision)
    faults = []
    with (PredictionWriter(args.out_dir)
          if args.out_dir else nullcontext()) as writer:
        for path, texts in track(
                questions.items(), 'Segmenting', disable=len(questions) == 1):
            # A broken picture among a thousand must not lose the others.
            try:
                picture = load_picture(path)
                check_out_file(args.out_file, path)
                with inferencer.open(picture) as view:
                    prediction = view(
                        texts, threshold=args.threshold, return_masks=False)
            except (OSError, ValueError,
                    torch.cuda.OutOfMemoryError) as error:
                faults.append(str(error))
                continue
            drawn = draw_prediction(picture.image[..., ::-1], prediction)
            if writer:
                writer.write(prediction, drawn)
            if args.out_file:
                write_image(drawn[..., ::-1], args.out_file)
            if len(questions) == 1:
                print_scores(prediction)
    if writer:
        print(f'{len(questions) - len(faults)} of {len(questions)} pictures: '
              f'{writer.path}')
    if args.out_file and not faults:
        print(f'overlay: {args.out_file}')
    return faults


def print_scores(prediction: dict) -> None:
    for text, score, rle in zip(
            *(prediction[key] for key in ('expressions', 'scores', 'rles')),
            strict=True):
        found = '' if coco_mask.area(rle) else '  (nothing found)'
        print(f'{score:.2f}  {text[:100]}{found}')


def show_warnings_once() -> None:
    """As a line each; what holds for many pictures is said once."""
    shown = set()

    def show(message, *_) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f'warning: {message}', file=sys.stderr)

    warnings.showwarning = show


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        SystemExit: With a message, if something was wrong.
    """
    args = parse_args(argv)
    show_warnings_once()
    try:
        faults = segment(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    except KeyboardInterrupt:
        raise SystemExit('stopped; what was answered is written') from None
    if faults:
        raise SystemExit('\n'.join(f'error: {fault}' for fault in faults))


if __name__ == '__main__':
    main()
