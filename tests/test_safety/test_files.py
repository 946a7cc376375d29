# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os

import pytest

from cris.io.files import read_bytes, safe_join
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


@pytest.mark.skipif(os.sep == '\\', reason='two folders there')
def test_a_link_with_a_backslash_in_its_name(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a\\b.jpg').symlink_to('/etc/passwd')
    with pytest.raises(ValueError, match='a link that leads out of'):
        safe_join(str(tmp_path / 'images'), 'a\\b.jpg')
