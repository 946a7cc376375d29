# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A web page that segments what phrases refer to: python demo/web_demo.py."""
import argparse
import os
import signal
import sys
import tempfile

from cris_segment import add_model_options, check_model_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='A web page that segments what phrases refer to')
    add = parser.add_argument
    add('config', nargs='?', help='config file')
    add('checkpoint', nargs='?', help='checkpoint file')
    add_model_options(parser)
    add('--server-name', default='127.0.0.1',
        help='address to listen on (default: %(default)s, this machine only; '
        '0.0.0.0: the whole network)')
    add('--port', type=int, default=7860)
    add('--max-megabytes', type=float, default=20)
    add('--max-megapixels', type=float, default=25)
    add('--max-phrases', type=int, default=50)
    add('--max-waiting', type=int, default=16,
        help='length of the queue; one question is answered at a time')
    args = parser.parse_intermixed_args(argv)
    check_model_options(parser, args)
    if not 0 <= args.port <= 65535:
        parser.error(f'--port {args.port} must be in 0 ... 65535')
    return args


def serve(args: argparse.Namespace) -> None:
    """Serve the page until the process is stopped."""
    try:
        import gradio
    except ImportError as error:
        raise SystemExit(f'error: the web page needs gradio ({error}): '
                         'pip install -r requirements/demo.txt') from error
    from web_page import Page, build

    from cris.apis.inferencer import CRISInferencer
    try:
        inferencer = CRISInferencer(
            args.config or args.model, args.checkpoint, args.device)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    page = build(Page(inferencer, args))
    try:
        _, address, _ = page.launch(
            quiet=True, prevent_thread_lock=True, share=False,
            server_name=args.server_name, server_port=args.port,
            max_file_size=f'{args.max_megabytes:g}mb',
            # Local fonts: nothing is fetched.
            theme=gradio.themes.Default(
                font=['system-ui', 'sans-serif'], font_mono=['monospace']))
    except OSError as error:
        raise SystemExit(
            f'error: cannot listen on {args.server_name}:{args.port}, which '
            'may be in use: choose another --port or --server-name'
        ) from error
    print(f'The page is at {address} (Ctrl-C stops it)', flush=True)
    page.block_thread()


def main() -> None:
    args = parse_args()
    # SIGTERM removes the uploads, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix='cris_web_demo_') as folder:
        # gradio reads them when it is imported.
        os.environ.update(GRADIO_ANALYTICS_ENABLED='False',
                          HF_HUB_OFFLINE='1', GRADIO_TEMP_DIR=folder)
        serve(args)


if __name__ == '__main__':
    main()
