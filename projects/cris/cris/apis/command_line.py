# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What the command ``cris-segment`` does after its options are parsed."""
import argparse
import os.path as osp
import sys
import warnings
from contextlib import nullcontext

import torch
from rich.progress import track

from cris.visualization.draw import verdict

from .inferencer import CRISInferencer
from .inputs import check_texts, list_images
from .model_zoo import default_model_note
from .predictions import find_existence_threshold
from .writer import PredictionWriter, write_image


def run(args: argparse.Namespace) -> None:
    """Run with ``cris_segment.parse_args()``; errors end in SystemExit."""
    show_warnings_once()
    try:
        faults = segment(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    except KeyboardInterrupt:
        raise SystemExit('stopped; finished images are written') from None
    if faults:
        raise SystemExit('\n'.join(f'error: {fault}' for fault in faults))


def segment(args: argparse.Namespace) -> list[str]:
    """Write the results; messages about the images that had to be left out."""
    questions = assign_texts(args)
    model = args.config or args.model
    inferencer = CRISInferencer(model, args.checkpoint, args.device,
                                args.precision)
    existence_threshold = find_existence_threshold(
        inferencer.model, args.existence_threshold)
    faults = []
    with (PredictionWriter(args.out_dir)
          if args.out_dir else nullcontext()) as writer:
        for path, texts in track(
                questions.items(), 'Segmenting', disable=len(questions) == 1):
            # One broken image among a thousand must not stop the others.
            try:
                result = inferencer(
                    path, texts, threshold=args.threshold,
                    existence_threshold=existence_threshold,
                    instances=args.instances, return_masks=False,
                    return_vis=True)
                if args.out_file and osp.exists(args.out_file) and (
                        osp.samefile(args.out_file, path)):
                    raise ValueError(f'--out-file {args.out_file} is the '
                                     'image itself: choose another name')
            except (OSError, ValueError,
                    torch.cuda.OutOfMemoryError) as error:
                faults.append(str(error))
                continue
            (prediction, ), (drawn, ) = result.values()
            if writer:
                writer.write(prediction, drawn)
            if args.out_file:
                write_image(drawn[..., ::-1], args.out_file)
            if len(questions) == 1:
                for k, text in enumerate(texts):
                    score, remark = verdict(prediction, k)
                    print(f'{score:4}  {text[:100]}  {remark}'.rstrip())
    if writer:
        print(f'{len(questions) - len(faults)} of {len(questions)} images: '
              f'{writer.path}')
    if args.out_file and not faults:
        print(f'overlay: {args.out_file}')
    note = default_model_note(model)
    if note and len(faults) < len(questions):
        print(f'note: {note}', file=sys.stderr)
    return faults


def assign_texts(args: argparse.Namespace) -> dict[str, list[str]]:
    """Phrases by image; raises ValueError if there are none."""
    phrases = read_text_file(args.text_file) if args.text_file else {}
    common = args.text + phrases.pop(None, [])
    paths = [path for source in args.inputs for path in list_images(source)]
    questions = {}
    for path in paths:
        texts = common + phrases.get(osp.basename(path), [])
        if texts:
            questions[path] = check_texts(texts)
    unknown = set(phrases) - {osp.basename(path) for path in paths}
    # With a single image, the file may be about many more.
    if unknown and len(paths) > 1:
        raise ValueError(f'{args.text_file} names images that are not among '
                         f'those given: {", ".join(sorted(unknown)[:5])}')
    if not questions:
        raise ValueError('no phrase given: use --text PHRASE or '
                         '--text-file FILE')
    return questions


def read_text_file(path: str) -> dict[str | None, list[str]]:
    """Phrases by file name; those under None are for every image."""
    if not osp.isfile(path):
        raise FileNotFoundError(f'text file {path} does not exist')
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text: {error}') from error
    phrases: dict[str | None, list[str]] = {}
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


def show_warnings_once() -> None:
    """Print each warning once, on one line."""
    shown = set()

    def show(message, *_) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f'warning: {message}', file=sys.stderr)

    warnings.showwarning = show
