"""Losses and their derivatives in one pass over memory, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_losses`, where they are explained. Every row is done by itself; the losses of
rows are summed in double precision and in their order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from linfb._workspace import empty
from linfb.kernels.cpu_activations import _exp
from linfb.kernels.cpu_norms import rows_of, sliced

__all__ = ["cross_entropy"]

_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}


def cross_entropy(outputs: Any, targets: Any, leading: int = 0) -> tuple[Any, Any]:
    """Return softmax cross-entropy, averaged over rows, and its derivative."""
    logits, labels = rows_of(outputs), rows_of(np.asarray(targets, outputs.dtype))
    delta, losses = empty(logits.shape, logits.dtype), np.empty(len(logits))
    of_runs = losses.reshape(*outputs.shape[:leading], -1)
    share = logits.dtype.type(1 / max(1, of_runs.shape[-1]))
    sliced(logits, lambda a, b: _cross_entropy(logits[a:b], labels[a:b], share, delta[a:b], losses[a:b]))
    return np.mean(of_runs, axis=-1).astype(logits.dtype), delta.reshape(outputs.shape)


@njit(**_OPTIONS)
def _cross_entropy(logits, labels, share, delta, losses):
    for i in range(logits.shape[0]):
        largest, total, right = logits[i, 0], logits.dtype.type(0), logits.dtype.type(0)
        for j in range(logits.shape[1]):
            largest = max(largest, logits[i, j])
        for j in range(logits.shape[1]):
            shifted = logits[i, j] - largest
            delta[i, j] = _exp(shifted)
            total += delta[i, j]
            right += labels[i, j] * shifted
        losses[i] = math.log(total) - right
        for j in range(logits.shape[1]):
            delta[i, j] = (delta[i, j] / total - labels[i, j]) * share
