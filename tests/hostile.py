# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Files that nobody should trust, for the tests of all that reads them."""
import io
import struct
import zlib

from PIL import Image


class Call:
    """Pickles to a call, in whatever way the protocol has for it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def encoded(image, **options):
    """The bytes of a Pillow image as a file."""
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def large_png(side):
    """A PNG of which the header says that it is large."""
    head = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    chunks = ((b'IHDR', head), (b'IDAT', zlib.compress(b'\0')), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data +
        struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks)


def animation(format):
    """Two frames."""
    frames = [Image.new('RGB', (40, 30), c) for c in ('red', 'blue')]
    return encoded(
        frames[0], format=format, save_all=True, append_images=frames[1:])


#: What a value of an annotation file may be instead of what it should be.
NAMES = ['/etc/passwd', '../x', 'file:///etc/passwd', '.', '', ' ', '\0',
         '\ud800', 'a' * 10_000]
NUMBERS = [-1, 0, -0.5, 1.5, 2**31, 2**63, 2**64, 10**400, 1e308,
           float('nan'), float('inf')]
MASKS = [
    [], {}, [[]], [[1e308] * 6], [[float('nan')] * 6], [['a'] * 6],
    [[[0, 0]] * 6], [[0, 0, 9e6, 9e6, 0, 9e6]],
    *(dict(size=[40, 60], counts=counts) for counts in (
        '0', 'o' * 5000, [-1], [1e308] * 3)),
    dict(size=[2**31, 2**31], counts='0'), dict(size=9, counts=[9]),
    dict(mask_file='/etc/passwd')
]
VALUES = [None, True, [None], ['a', 5], *NAMES, *NUMBERS, *MASKS]


def variants(value):
    """Copies with a hostile value at one place, for all values and places."""
    yield from VALUES
    places = value if isinstance(value, dict) else range(
        len(value) if isinstance(value, list) else 0)
    for place in places:
        for changed in variants(value[place]):
            copy = value.copy()
            copy[place] = changed
            yield copy
