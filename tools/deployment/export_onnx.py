# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Export a model to ONNX: tools/deployment/export_onnx.py CONFIG CKPT DIR."""
import argparse
import os.path as osp


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Export a model to ONNX: image encoder, text encoder, '
        'decoder, and all three in one graph; each is compared with PyTorch')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('folder', help='folder for the graphs')
    parser.add_argument(
        '--no-fused', action='store_true', help='do not write cris.onnx')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='override the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # After the options: importing takes seconds.
    import cris
    from cris.deploy.export import export_onnx
    from cris.engine.config import load_config
    try:
        model = cris.init_model(
            load_config(args.config, args.cfg_options), args.checkpoint, 'cpu')
        worst = export_onnx(model, args.folder, not args.no_fused)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f"{osp.join(args.folder, '*.onnx')}: outputs differ from PyTorch's "
          f'by at most {worst:.1e} of the largest')


if __name__ == '__main__':
    main()
