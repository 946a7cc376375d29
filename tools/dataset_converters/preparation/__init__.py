# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The commands of prepare.py; nothing is imported here, for its --help."""
