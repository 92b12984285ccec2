"""Online learning compiled for the CPU by numba; every function has its twin in `reference_online`.

What a step costs is the traffic of the weights between the caches, so that rows are met as few times as possible. The
inputs are known in advance, so that the first layer, mostly the largest, takes the steps of a block at once: it sends
all of the block's samples, and what it would have learned in between is added from the inputs' overlaps,

    x_t W_t^T = x_t W_0^T - rate * sum over s < t of (x_t . x_s) delta_s .

In the layers above a gradient step waits until the next sample comes and is done in the pass over the rows that sends
the sample on. Inner loops write to one array, and where they add up they take four rows at a time, so that they become
vector instructions. The kernel works on copies of its own, which lie where whole vectors can be loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from linfb.kernels.reference_online import BLOCK

__all__ = ["online_sgd"]

_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


@njit(**_OPTIONS)
def _times_transposed(x, matrix, out):
    """Set out = x @ matrix.T."""
    n_rows, n_columns = matrix.shape
    zero = matrix.dtype.type(0)
    for o in range(0, n_rows - 3, 4):
        for b in range(x.shape[0]):
            first, second, third, fourth = zero, zero, zero, zero
            for i in range(n_columns):
                first += matrix[o, i] * x[b, i]
                second += matrix[o + 1, i] * x[b, i]
                third += matrix[o + 2, i] * x[b, i]
                fourth += matrix[o + 3, i] * x[b, i]
            out[b, o], out[b, o + 1], out[b, o + 2], out[b, o + 3] = first, second, third, fourth
    for o in range(n_rows - n_rows % 4, n_rows):
        for b in range(x.shape[0]):
            first = zero
            for i in range(n_columns):
                first += matrix[o, i] * x[b, i]
            out[b, o] = first


@njit(**_OPTIONS)
def _times(x, matrix, factor, out):
    """Set out = factor * x @ matrix."""
    n_rows, n_columns = matrix.shape
    for b in range(x.shape[0]):
        for i in range(n_columns):
            out[b, i] = 0
        for o in range(0, n_rows - 3, 4):
            first, second, third, fourth = x[b, o], x[b, o + 1], x[b, o + 2], x[b, o + 3]
            for i in range(n_columns):
                out[b, i] += factor * (
                    (first * matrix[o, i] + second * matrix[o + 1, i])
                    + (third * matrix[o + 2, i] + fourth * matrix[o + 3, i])
                )
        for o in range(n_rows - n_rows % 4, n_rows):
            first = factor * x[b, o]
            for i in range(n_columns):
                out[b, i] += first * matrix[o, i]


@njit(**_OPTIONS)
def _descend(matrix, left, right, rate, keep):
    """Set matrix = keep * matrix - rate * left.T @ right."""
    n_samples, n_columns = left.shape[0], matrix.shape[1]
    for o in range(matrix.shape[0]):
        if keep != 1:
            for i in range(n_columns):
                matrix[o, i] *= keep
        for b in range(0, n_samples - 3, 4):
            first, second = rate * left[b, o], rate * left[b + 1, o]
            third, fourth = rate * left[b + 2, o], rate * left[b + 3, o]
            for i in range(n_columns):
                matrix[o, i] -= (first * right[b, i] + second * right[b + 1, i]) + (
                    third * right[b + 2, i] + fourth * right[b + 3, i]
                )
        for b in range(n_samples - n_samples % 4, n_samples):
            first = rate * left[b, o]
            for i in range(n_columns):
                matrix[o, i] -= first * right[b, i]


@njit(**_OPTIONS)
def _descend_and_send(matrix, left, right, rate, keep, x, out):
    """Do :func:`_descend`, then set out = x @ matrix.T: for single samples in one pass over the rows."""
    if x.shape[0] > 1:
        _descend(matrix, left, right, rate, keep)
        _times_transposed(x, matrix, out)
        return
    for o in range(matrix.shape[0]):
        scaled, total = rate * left[0, o], matrix.dtype.type(0)
        for i in range(matrix.shape[1]):
            moved = keep * matrix[o, i] - scaled * right[0, i]
            matrix[o, i] = moved
            total += moved * x[0, i]
        out[0, o] = total


@njit(**_OPTIONS)
def _oja(P, rows, z, rest, rate):
    """Move P by rate * z.T @ (rows - z @ P), z = rows @ P.T; `rest` is scratch."""
    _times_transposed(rows, P, z)
    _times(z, P, P.dtype.type(1), rest)
    for b in range(rows.shape[0]):
        for o in range(P.shape[1]):
            rest[b, o] = rows[b, o] - rest[b, o]
    _descend(P, z, rest, -rate, P.dtype.type(1))


@njit(**_OPTIONS)
def _send_within(sent, overlaps, learned, step, batch, rate, keep, out):
    """Set out = x @ W.T for a step of the block: what the samples sent at its start, and what was learned since."""
    for b in range(batch):
        row, scaled = step * batch + b, rate
        for o in range(sent.shape[1]):
            out[b, o] = sent[row, o]
        for before in range(step * batch - 1, -1, -1):
            factor = scaled * overlaps[row, before]
            for o in range(sent.shape[1]):
                out[b, o] -= factor * learned[before, o]
            if before % batch == 0:
                scaled *= keep


@njit(**_OPTIONS)
def _fade(rows, batch, keep, reverse):
    """Multiply the rows of each step by keep to the power of the steps before it, or of those after it (`reverse`)."""
    n_steps = rows.shape[0] // batch
    if keep == 1:
        return
    for step in range(n_steps):
        factor = keep ** (n_steps - 1 - step if reverse else step)
        for row in range(step * batch, (step + 1) * batch):
            for i in range(rows.shape[1]):
                rows[row, i] *= factor


@njit(**_OPTIONS)
def online_sgd(weights, P, Q, gains, inputs, labels, step_size, weight_decay, way, q_rate, p_rate, on_labels, direct):
    """Advance one linear network by a gradient step per entry of `inputs`, in place; see the twin for the arguments."""
    real, dtype = weights[0].dtype.type, weights[0].dtype
    top, (n_steps, batch, n_in), n_first, n_out = len(weights), inputs.shape, weights[0].shape[0], labels.shape[2]
    widest = n_in
    for W in weights:
        widest = max(widest, W.shape[0])
    own, reader, mirror = [W.copy() for W in weights], [p.copy() for p in P], [q.copy() for q in Q]
    activity = np.zeros((2, top + 1, batch, widest), dtype)  # now and one step ago
    delta = np.zeros((2, top + 1, batch, widest), dtype)
    z, rest, label = (
        np.zeros((batch, widest), dtype),
        np.zeros((batch, widest), dtype),
        np.zeros((batch, widest), dtype),
    )
    samples, sent = np.zeros((BLOCK * batch, n_in), dtype), np.zeros((BLOCK * batch, n_first), dtype)
    learned, overlaps = np.zeros(sent.shape, dtype), np.zeros((BLOCK * batch, BLOCK * batch), dtype)
    rate, share, one = real(step_size), real(1 / batch), real(1)
    keep, keep_q = real(1 - step_size * weight_decay), real(1 - step_size * q_rate * weight_decay)
    for start in range(0, n_steps, BLOCK):
        steps = min(BLOCK, n_steps - start)
        rows = steps * batch
        samples[:rows] = inputs[start : start + steps].reshape(rows, n_in)
        _times_transposed(samples[:rows], own[0], sent)
        _times_transposed(samples[:rows], samples[:rows], overlaps)
        _fade(sent[:rows], batch, keep, False)
        for step in range(steps):
            turn = (start + step) % 2
            now, ago, error, waiting = activity[turn], activity[1 - turn], delta[turn], delta[1 - turn]
            _send_within(sent, overlaps, learned, step, batch, rate, keep, now[1])
            for l in range(1, top):
                kept = keep if start + step > 0 else one
                _descend_and_send(own[l], waiting[l + 1], ago[l], rate, kept, now[l], now[l + 1])
            for b in range(batch):
                for o in range(n_out):
                    label[b, o] = labels[start + step, b, o]
                    error[top, b, o] = share * (now[top, b, o] - label[b, o])
            for l in range(top - 1, 0, -1):
                read = error[top if direct else l + 1]
                reads_all = P[l].shape[0] == 0
                if not reads_all:
                    _times_transposed(read, reader[l], z)
                seen = read if reads_all else z
                if way == 1:
                    _times(seen, mirror[l], real(gains[l]), error[l])
                elif way == 2 and reads_all:
                    _times(read, own[l], real(gains[l]), error[l])
                elif way == 2:
                    _times(z, reader[l], real(gains[l]), rest)
                    _times(rest, own[l], one, error[l])
                if q_rate != 0.0:
                    _descend(mirror[l], seen, now[l], real(step_size * q_rate), keep_q)
                if p_rate != 0.0:
                    if on_labels and (direct or l == top - 1):
                        _oja(reader[l], label, z, rest, real(step_size * p_rate / batch))
                    else:
                        _oja(reader[l], read, z, rest, real(step_size * p_rate * batch))
            for b in range(batch):
                for o in range(n_first):
                    learned[step * batch + b, o] = error[1, b, o]
        _fade(learned[:rows], batch, keep, True)
        _descend(own[0], learned[:rows], samples[:rows], rate, keep**steps)
    for l in range(top):
        if l > 0:  # with the same instructions as within
            waiting, ago = delta[1 - n_steps % 2], activity[1 - n_steps % 2]
            _descend_and_send(own[l], waiting[l + 1], ago[l], rate, keep, label, rest)
            P[l][:] = reader[l]
            Q[l][:] = mirror[l]
        weights[l][:] = own[l]
