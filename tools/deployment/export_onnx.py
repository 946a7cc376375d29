# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Export a model to ONNX: tools/deployment/export_onnx.py CONFIG CKPT DIR."""
import argparse
import os.path as osp


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Export a model to ONNX: image encoder, text encoder, '
        'decoder, and all three in one graph; each is compared with PyTorch')
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file')
    add('folder', help='folder for the graphs')
    add('--no-fused', action='store_true', help='do not write cris.onnx')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='override the config')
    args = parser.parse_args()
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
