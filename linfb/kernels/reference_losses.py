"""Losses and their derivatives in array-API operations: what every faster way is held to."""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace

__all__ = ["cross_entropy"]


def cross_entropy(outputs: Any, targets: Any, leading: int = 0) -> tuple[Any, Any]:
    """Return softmax cross-entropy, averaged over rows, and its derivative.

    Parameters
    ----------
    outputs, targets : array, shape (..., classes)
        Unnormalised log-probabilities, and rows that sum to one.
    leading : int
        Number of axes before the rows; each of their entries has a loss of its own.
    """
    xp, rows = namespace(outputs, targets), math.prod(outputs.shape[leading:-1])
    axes = tuple(range(leading, outputs.ndim))
    shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = xp.sum(exponentials, axis=-1, keepdims=True)
    loss = (xp.sum(xp.log(total), axis=axes) - xp.sum(targets * shifted, axis=axes)) / rows
    return loss, (exponentials / total - targets) / rows
