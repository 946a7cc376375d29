# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Attention of the decoder to words: a heat map for each word.

Example:
    python demo/attention_demo.py IMG --text 'the red circle' \
        --out-file attention.png
"""
import argparse
import sys

from cris_segment import add_model_options, check_model_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('image', help='image file')
    add('config', nargs='?', help='config file')
    add('checkpoint', nargs='?', help='checkpoint file')
    add_model_options(parser)
    add('--text', required=True, help='expression')
    add('--out-file', required=True, help='image to write')
    add('--layer', type=int, default=-1,
        help='index of the decoder layer (default: -1, the last)')
    args = parser.parse_args()
    check_model_options(parser, args)
    if not args.out_file.lower().endswith(('.png', '.jpg', '.jpeg')):
        parser.error(f'--out-file {args.out_file} must end in .png or .jpg')
    return args


def main() -> None:
    args = parse_args()
    # After the options: importing takes seconds.
    from cris.apis.inferencer import CRISInferencer
    from cris.apis.inputs import check_texts, load_image
    from cris.apis.model_zoo import default_model_note
    from cris.apis.writer import write_image
    from cris.visualization.attention import draw_attention, word_attention
    try:
        image = load_image(args.image).bgr[..., ::-1]
        (text, ) = check_texts(args.text)
        inferencer = CRISInferencer(
            args.config or args.model, args.checkpoint, args.device)
        for message in inferencer.find_long_texts([text]):
            print(f'warning: {message}', file=sys.stderr)
        attention = word_attention(inferencer.model, image, text, args.layer)
        write_image(
            draw_attention(image, text, attention)[..., ::-1], args.out_file)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'wrote {args.out_file}')
    note = default_model_note(args.config or args.model)
    if note:
        print(f'note: {note}', file=sys.stderr)


if __name__ == '__main__':
    main()
