"""Online learning compiled for the CPU by numba; every function has its twin in `reference_online`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["online_sgd"]

_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


@njit(**_OPTIONS)
def _times_transposed(x, matrix, out):
    """Set out = x @ matrix.T."""
    for b in range(x.shape[0]):
        for o in range(matrix.shape[0]):
            total = 0.0
            for i in range(matrix.shape[1]):
                total += matrix[o, i] * x[b, i]
            out[b, o] = total


@njit(**_OPTIONS)
def _times(x, matrix, factor, out):
    """Set out = factor * x @ matrix."""
    for b in range(x.shape[0]):
        for i in range(matrix.shape[1]):
            out[b, i] = 0.0
        for o in range(matrix.shape[0]):
            scaled = factor * x[b, o]
            for i in range(matrix.shape[1]):
                out[b, i] += scaled * matrix[o, i]


@njit(**_OPTIONS)
def _descend(matrix, left, right, rate, keep):
    """Set matrix = keep * matrix - rate * left.T @ right."""
    for o in range(matrix.shape[0]):
        if keep != 1.0:
            for i in range(matrix.shape[1]):
                matrix[o, i] *= keep
        for b in range(left.shape[0]):
            scaled = rate * left[b, o]
            for i in range(matrix.shape[1]):
                matrix[o, i] -= scaled * right[b, i]


@njit(**_OPTIONS)
def _oja(P, rows, z, rest, rate):
    """Move P by rate * z.T @ (rows - z @ P), z = rows @ P.T; `rest` is scratch."""
    _times_transposed(rows, P, z)
    _times(z, P, 1.0, rest)
    for b in range(rows.shape[0]):
        for o in range(rows.shape[1]):
            rest[b, o] = rows[b, o] - rest[b, o]
    _descend(P, z, rest, -rate, 1.0)


@njit(**_OPTIONS)
def online_sgd(weights, P, Q, gains, inputs, labels, step_size, weight_decay, way, q_rate, p_rate, on_labels, direct):
    """Advance one linear network by a gradient step per entry of `inputs`, in place; see the twin for the arguments."""
    top, batch = len(weights), inputs.shape[1]
    widest = inputs.shape[2]
    for l in range(top):
        widest = max(widest, weights[l].shape[0])
    activity = np.zeros((top + 1, batch, widest))
    delta, carried = np.zeros((batch, widest)), np.zeros((batch, widest))
    error, z, mixed = np.zeros((batch, widest)), np.zeros((batch, widest)), np.zeros((batch, widest))
    keep = 1.0 - step_size * weight_decay
    n_out = labels.shape[2]
    for step in range(inputs.shape[0]):
        activity[0, :, : inputs.shape[2]] = inputs[step]
        for l in range(top):
            n_i = weights[l].shape[1]
            _times_transposed(activity[l, :, :n_i], weights[l], activity[l + 1])
        for b in range(batch):
            for o in range(n_out):
                error[b, o] = (activity[top, b, o] - labels[step, b, o]) / batch
                delta[b, o] = error[b, o]
        for l in range(top - 1, -1, -1):
            W = weights[l]
            n_o, n_i = W.shape
            below = activity[l, :, :n_i]
            if l > 0:
                source, n_read = (error, n_out) if direct else (delta, n_o)
                read = source[:, :n_read]
                reads_all = P[l].shape[0] == 0
                if not reads_all:
                    _times_transposed(read, P[l], z)
                seen = read if reads_all else z[:, : P[l].shape[0]]
                if way == 1:
                    _times(seen, Q[l], gains[l], carried)
                elif way == 2 and reads_all:
                    _times(read, W, gains[l], carried)
                elif way == 2:
                    _times(seen, P[l], gains[l], mixed)
                    _times(mixed[:, :n_o], W, 1.0, carried)
                else:
                    carried[:, :n_i] = 0.0
                if q_rate != 0.0:
                    _descend(Q[l], seen, below, step_size * q_rate, 1.0 - step_size * q_rate * weight_decay)
            _descend(W, delta[:, :n_o], below, step_size, keep)
            if l > 0:
                if p_rate != 0.0:
                    if on_labels and (direct or l == top - 1):
                        _oja(P[l], labels[step], z[:, : P[l].shape[0]], mixed[:, :n_read], step_size * p_rate / batch)
                    else:
                        _oja(P[l], read, z[:, : P[l].shape[0]], mixed[:, :n_read], step_size * p_rate * batch)
                delta, carried = carried, delta
