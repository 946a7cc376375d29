# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Which words the decoder looks at: a heat map per word of an expression.

Example:
    python demo/attention_demo.py PICTURE --text 'the red circle' \
        --out-file attention.png
"""
import argparse
import sys

import cris
from cris.apis.inputs import check_texts, load_picture
from cris.apis.writer import write_image
from cris.visualization.attention import draw_attention, word_attention


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('image', help='picture')
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file')
    parser.add_argument(
        '--model',
        help='instead: a name of the model zoo (default: the small model that '
        'knows coloured shapes)')
    parser.add_argument('--text', required=True, help='expression')
    parser.add_argument('--out-file', required=True, help='picture to write')
    parser.add_argument(
        '--layer', type=int, default=-1,
        help='of the decoder, from 0, or from the last one, -1')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...')
    args = parser.parse_args()
    if (args.config is None) != (args.checkpoint is None):
        parser.error('CONFIG and CHECKPOINT go together')
    if args.config and args.model:
        parser.error('give CONFIG CHECKPOINT or --model NAME, not both')
    if not args.out_file.lower().endswith(('.png', '.jpg', '.jpeg')):
        parser.error(f'--out-file ends in .png or .jpg, got {args.out_file}')
    return args


def main() -> None:
    args = parse_args()
    try:
        image = load_picture(args.image).image[..., ::-1]
        (text, ) = check_texts(args.text)
        inferencer = cris.CRISInferencer(args.config or args.model,
                                         args.checkpoint, args.device)
        for message in inferencer.find_long_texts([text]):
            print(f'warning: {message}', file=sys.stderr)
        attention = word_attention(inferencer.model, image, text, args.layer)
        write_image(
            draw_attention(image, text, attention)[..., ::-1], args.out_file)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'wrote {args.out_file}')


if __name__ == '__main__':
    main()
