# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os

import pytest

from cris.io.files import read_bytes
from cris.io.images import image_size, open_image


def test_a_pipe_does_not_block(tmp_path):
    path = str(tmp_path / 'a.png')
    os.mkfifo(path)
    for read in (image_size, read_bytes):
        with pytest.raises(ValueError, match='a.png is not a regular file'):
            read(path)


def test_postscript_is_not_run():
    """Pillow would start Ghostscript."""
    content = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n'
    with pytest.raises(ValueError, match='a.jpg cannot be decoded'):
        open_image(content, 'a.jpg')
