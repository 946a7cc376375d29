# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import numpy as np
from numpy.typing import ArrayLike


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


def answer_confidence(existence: ArrayLike, score: ArrayLike,
                      answered: ArrayLike,
                      calibration: dict | None = None) -> np.ndarray:
    """Probability that an answer is right: a mask or "there is none".

    A mask is right if there is a referent and their IoU is 0.5 or more; an
    empty mask is right if there is none.

    Args:
        existence (ArrayLike): Probability of a referent, from the head.
        score (ArrayLike): :func:`confidence` of the mask; it does not matter
            where the mask is empty.
        answered (ArrayLike): Whether the mask has pixels.
        calibration (dict, optional): ``decode_head.calibration``, slope and
            intercept of two logistic regressions: ``existence`` maps the
            logit of existence to that of a referent, and ``mask`` the logit
            of the score to that of an IoU of 0.5 if there is one. None takes
            existence and score as they are.

    Returns:
        np.ndarray: float64 in [0, 1], in the shape of the arguments: the
        product of the two for a mask, or 1 - existence for an empty one.
    """
    exists, good = np.asarray(existence), np.asarray(score)
    if calibration is not None:
        exists = _scaled(exists, *calibration['existence'])
        good = _scaled(good, *calibration['mask'])
    return np.where(answered, exists * good, 1.0 - exists)


def logit(prob: ArrayLike) -> np.ndarray:
    """Of probabilities, which are clipped to [1e-6, 1 - 1e-6]."""
    prob = np.clip(np.asarray(prob, np.float64), 1e-6, 1 - 1e-6)
    return np.log(prob / (1 - prob))


def _scaled(prob: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Platt scaling."""
    x = slope * logit(prob) + intercept
    return (1 + np.tanh(x / 2)) / 2  # the sigmoid; exp could overflow
