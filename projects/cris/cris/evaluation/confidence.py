# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import numpy as np


def confidence(prob: np.ndarray, mask: np.ndarray) -> float:
    """How confident the model is in a predicted mask.

    Args:
        prob (np.ndarray): Probabilities, float32 ``(h, w)``.
        mask (np.ndarray): bool ``(h, w)``.

    Returns:
        float: The mean probability inside the mask, or the maximum if the
        mask is empty; in [0, 1].
    """
    score = prob[mask].mean() if mask.any() else prob.max()
    # Cubic interpolation overshoots.
    return min(max(float(score), 0.0), 1.0)
