# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Export: python tools/deployment/export_onnx.py CONFIG CKPT DIR.

DIR gets image_encoder.onnx, text_encoder.onnx and decoder.onnx, and cris.onnx
with all three in one; each is compared with PyTorch after it is written.
"""
import argparse
import os.path as osp

from mmengine.config import DictAction

import cris
from cris.deploy import export_onnx
from cris.engine import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('folder', help='where the graphs go')
    parser.add_argument(
        '--no-fused', action='store_true', help='do not write cris.onnx')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
    try:
        model = cris.init_model(
            load_config(args.config, args.cfg_options), args.checkpoint, 'cpu')
        worst = export_onnx(model, args.folder, not args.no_fused)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{osp.join(args.folder, "*.onnx")}: outputs differ from '
          f"PyTorch's by at most {worst:.1e} of the largest")


if __name__ == '__main__':
    main()
