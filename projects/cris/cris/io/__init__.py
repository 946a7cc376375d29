# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Safe reading of untrusted files. Imports no other room of cris."""
