# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Files, strangers' files among them, read safely. Imports nothing of cris."""
