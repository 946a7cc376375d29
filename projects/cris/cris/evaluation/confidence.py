# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import numpy as np


def confidence(prob: np.ndarray, mask: np.ndarray) -> float:
    """How sure the model is of a mask.

    Args:
        prob (np.ndarray): Probabilities, float32 ``(h, w)``.
        mask (np.ndarray): bool ``(h, w)``.

    Returns:
        float: Mean probability inside the mask, or the highest one where
        the mask is empty; in [0, 1].
    """
    score = prob[mask].mean() if mask.any() else prob.max()
    # Cubic interpolation overshoots.
    return min(max(float(score), 0.0), 1.0)
