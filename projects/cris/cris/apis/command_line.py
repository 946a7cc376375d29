# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The command ``cris-segment``; demo/image_demo.py is the same."""
import argparse
import os.path as osp
import sys
import warnings
from typing import Dict, List, Optional, Sequence

import mmcv
from mmengine.utils import mkdir_or_exist
from rich.progress import track

from .inferencer import DEFAULT_MODEL, CRISInferencer
from .inputs import check_texts, list_pictures, load_picture
from .predictions import PredictionWriter, draw_prediction

_PICTURES = ('.jpg', '.jpeg', '.png', '.webp')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Segment what phrases refer to, in a picture or in every '
        'picture of a folder')
    parser.add_argument('image', help='picture, or folder of pictures')
    parser.add_argument(
        'config', nargs='?', help='config file of a model of your own')
    parser.add_argument(
        'checkpoint', nargs='?', help='its weights, after the config')
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
        'for a folder: NAME_segmented, here)')
    parser.add_argument(
        '--threshold',
        type=float,
        help="of the probability, in [0, 1] (default: the model's)")
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...')
    parser.add_argument(
        '--precision', choices=['fp32', 'bf16', 'fp16'], default='fp32')
    # CONFIG CHECKPOINT may come after the options.
    args = parser.parse_intermixed_args(argv)
    if args.config and args.model:
        parser.error('give CONFIG CHECKPOINT or --model NAME, not both')
    if args.config and not args.checkpoint:
        parser.error(f'give the CHECKPOINT after the config {args.config}')
    folder = osp.isdir(args.image)
    if folder and args.out_file:
        parser.error('--out-file is for a single picture; --out-dir is for a '
                     'folder')
    if args.out_file and not args.out_file.lower().endswith(_PICTURES):
        parser.error(f'--out-file: end {args.out_file} in one of '
                     f'{", ".join(_PICTURES)}')
    name = osp.splitext(osp.basename(osp.abspath(args.image)))[0]
    if folder and not args.out_dir:
        args.out_dir = f'{name}_segmented'
    elif not args.out_file and not args.out_dir:
        args.out_file = f'{name}_segmented.jpg'
    return args


def read_text_file(path: str) -> Dict[Optional[str], List[str]]:
    """Phrases by file name; those under None are for every picture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'text file {path} does not exist')
    phrases: Dict[Optional[str], List[str]] = {}
    try:
        with open(path, encoding='utf-8-sig') as file:
            for line in filter(str.strip, file):
                name, tab, phrase = line.rstrip('\n').partition('\t')
                name, phrase = (name.strip(), phrase) if tab else (None, name)
                phrases.setdefault(name, []).append(phrase.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text: {error}') from error
    return phrases


def assign_texts(args: argparse.Namespace) -> Dict[str, List[str]]:
    """What is asked of which picture; raises ValueError if nothing is."""
    phrases = read_text_file(args.text_file) if args.text_file else {}
    common = args.text + phrases.pop(None, [])
    questions = {}
    for path in list_pictures(args.image):
        texts = common + phrases.pop(osp.basename(path), [])
        if texts:
            questions[path] = check_texts(texts)
    if phrases:
        raise ValueError(f'{args.text_file} names pictures that are not in '
                         f'{args.image}: {", ".join(list(phrases)[:5])}')
    if not questions:
        raise ValueError('nothing is asked: give --text PHRASE or '
                         '--text-file FILE')
    return questions


def segment(args: argparse.Namespace) -> List[str]:
    """Answer and write.

    Returns:
        list[str]: What is wrong with pictures that could not be used; the
        others were written.
    """
    questions = assign_texts(args)
    inferencer = CRISInferencer(args.config or args.model, args.checkpoint,
                                args.device, args.precision)
    writer = PredictionWriter(args.out_dir) if args.out_dir else None
    faults = []
    for path, texts in track(
            questions.items(), 'Segmenting', disable=len(questions) == 1):
        # A broken picture among a thousand must not lose the others.
        try:
            picture = load_picture(path)
        except (OSError, ValueError) as error:
            faults.append(str(error))
            continue
        with inferencer.open(picture) as view:
            prediction = view(
                texts, threshold=args.threshold, return_masks=False)
        drawn = draw_prediction(picture.image[..., ::-1], prediction)
        if writer:
            writer.write(prediction, drawn)
        if args.out_file:
            mkdir_or_exist(osp.dirname(osp.abspath(args.out_file)))
            mmcv.imwrite(drawn[..., ::-1], args.out_file)
        if len(questions) == 1:
            for text, score in zip(texts, prediction['scores'], strict=True):
                print(f'{score:.2f}  {text[:100]}')
    if writer:
        print(f'{len(questions) - len(faults)} of {len(questions)} pictures: '
              f'{writer.close()}')
    if args.out_file and not faults:
        print(f'overlay: {args.out_file}')
    return faults


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command.

    Raises:
        SystemExit: With a message, if something was wrong.
    """
    args = parse_args(argv)
    warnings.showwarning = lambda message, *_: print(
        f'warning: {message}', file=sys.stderr)
    try:
        faults = segment(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    if faults:
        raise SystemExit('\n'.join(f'error: {fault}' for fault in faults))


if __name__ == '__main__':
    main()
