# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Segment what phrases refer to: image_demo.py IMG --text PHRASE."""
from cris_segment import main

if __name__ == '__main__':
    main()
