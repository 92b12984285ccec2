"""Online learning compiled for the CPU by numba; every function has its twin in `reference_online`.

What a step costs is the traffic of the weights between the caches, so that rows are met as few times as possible. The
inputs are known in advance, so that the first layer, mostly the largest, takes the steps of a block at once: it sends
all of the block's samples, and what it would have learned in between is added from the inputs' overlaps,

    x_t W_t^T = x_t W_0^T - rate * sum over s < t of (x_t . x_s) delta_s .

In the layers above a gradient step waits until the next sample comes and is done in the pass over the rows that sends
the sample on. Inner loops write to one array, and where they add up they take four rows at a time, so that they become
vector instructions. The kernel works on copies of its own, which lie where whole vectors can be loaded, and functions
get the numbers of rows instead of views: counting the references to a view costs as much as a pass over a short row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from linfb.kernels.reference_online import BLOCK

__all__ = ["online_sgd"]

_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


@njit(**_OPTIONS)
def _times_transposed(x, at, matrix, out, to, n):
    """Set rows `to` to `to + n` of `out` to those from `at` of x, times matrix.T."""
    n_rows, n_columns = matrix.shape
    zero = matrix.dtype.type(0)
    for o in range(0, n_rows - 3, 4):
        for b in range(n):
            first, second, third, fourth = zero, zero, zero, zero
            for i in range(n_columns):
                first += matrix[o, i] * x[at + b, i]
                second += matrix[o + 1, i] * x[at + b, i]
                third += matrix[o + 2, i] * x[at + b, i]
                fourth += matrix[o + 3, i] * x[at + b, i]
            out[to + b, o], out[to + b, o + 1] = first, second
            out[to + b, o + 2], out[to + b, o + 3] = third, fourth
    for o in range(n_rows - n_rows % 4, n_rows):
        for b in range(n):
            first = zero
            for i in range(n_columns):
                first += matrix[o, i] * x[at + b, i]
            out[to + b, o] = first


@njit(**_OPTIONS)
def _times(v, n, x, matrix, factor, out):
    """Set the n rows of v from `out` on to factor * those from x on @ matrix."""
    n_rows, n_columns = matrix.shape
    for b in range(n):
        for i in range(n_columns):
            v[out + b, i] = 0
        for o in range(0, n_rows - 3, 4):
            first, second, third, fourth = v[x + b, o], v[x + b, o + 1], v[x + b, o + 2], v[x + b, o + 3]
            for i in range(n_columns):
                v[out + b, i] += factor * (
                    (first * matrix[o, i] + second * matrix[o + 1, i])
                    + (third * matrix[o + 2, i] + fourth * matrix[o + 3, i])
                )
        for o in range(n_rows - n_rows % 4, n_rows):
            first = factor * v[x + b, o]
            for i in range(n_columns):
                v[out + b, i] += first * matrix[o, i]


@njit(**_OPTIONS)
def _descend(matrix, left, at, right, to, n, rate, keep):
    """Set matrix = keep * matrix - rate * left.T @ right, n rows of left from `at` on and of right from `to` on."""
    n_columns = matrix.shape[1]
    for o in range(matrix.shape[0]):
        if keep != 1:
            for i in range(n_columns):
                matrix[o, i] *= keep
        for b in range(0, n - 3, 4):
            first, second = rate * left[at + b, o], rate * left[at + b + 1, o]
            third, fourth = rate * left[at + b + 2, o], rate * left[at + b + 3, o]
            for i in range(n_columns):
                matrix[o, i] -= (first * right[to + b, i] + second * right[to + b + 1, i]) + (
                    third * right[to + b + 2, i] + fourth * right[to + b + 3, i]
                )
        for b in range(n - n % 4, n):
            first = rate * left[at + b, o]
            for i in range(n_columns):
                matrix[o, i] -= first * right[to + b, i]


@njit(**_OPTIONS)
def _descend_and_send(matrix, v, n, left, right, rate, keep, x, out):
    """Do :func:`_descend`, then set out = x @ matrix.T: for single samples in one pass over the rows of the matrix."""
    if n > 1:
        _descend(matrix, v, left, v, right, n, rate, keep)
        _times_transposed(v, x, matrix, v, out, n)
        return
    for o in range(matrix.shape[0]):
        scaled, total = rate * v[left, o], matrix.dtype.type(0)
        for i in range(matrix.shape[1]):
            moved = keep * matrix[o, i] - scaled * v[right, i]
            matrix[o, i] = moved
            total += moved * v[x, i]
        v[out, o] = total


@njit(**_OPTIONS)
def _oja(P, v, n, rows, z, rest, rate):
    """Move P by rate * z.T @ (rows - z @ P), z = rows @ P.T; `rest` is scratch."""
    one = P.dtype.type(1)
    _times_transposed(v, rows, P, v, z, n)
    _times(v, n, z, P, one, rest)
    for b in range(n):
        for o in range(P.shape[1]):
            v[rest + b, o] = v[rows + b, o] - v[rest + b, o]
    _descend(P, v, z, v, rest, n, -rate, one)


@njit(**_OPTIONS)
def _send_within(sent, overlaps, learned, step, n, rate, keep, v, out):
    """Set out = x @ W.T for a step of the block: what the samples sent at its start, and what was learned since."""
    for b in range(n):
        row, scaled = step * n + b, rate
        for o in range(sent.shape[1]):
            v[out + b, o] = sent[row, o]
        for before in range(step * n - 1, -1, -1):
            factor = scaled * overlaps[row, before]
            for o in range(sent.shape[1]):
                v[out + b, o] -= factor * learned[before, o]
            if before % n == 0:
                scaled *= keep


@njit(**_OPTIONS)
def _fade(rows, n_steps, n, keep, reverse):
    """Multiply the rows of each step by keep to the power of the steps before it, or of those after it (`reverse`)."""
    if keep == 1:
        return
    for step in range(n_steps):
        factor = rows.dtype.type(keep ** (n_steps - 1 - step if reverse else step))
        for row in range(step * n, (step + 1) * n):
            for i in range(rows.shape[1]):
                rows[row, i] *= factor


@njit(**_OPTIONS)
def online_sgd(weights, P, Q, gains, inputs, labels, step_size, weight_decay, way, q_rate, p_rate, on_labels, direct):
    """Advance one linear network by a gradient step per entry of `inputs`, in place; see the twin for the arguments."""
    real, dtype = weights[0].dtype.type, weights[0].dtype
    top, (n_steps, n, n_in), n_first, n_out = len(weights), inputs.shape, weights[0].shape[0], labels.shape[2]
    widest = n_in
    for W in weights:
        widest = max(widest, W.shape[0])
    own, reader, mirror = [W.copy() for W in weights], [p.copy() for p in P], [q.copy() for q in Q]
    # rows of v: activity in a step and in the one before, the errors of both, and three more, each of n samples
    turn = n * (top + 1)
    errors, z, rest, label = 2 * turn, 4 * turn, 4 * turn + n, 4 * turn + 2 * n
    v = np.zeros((4 * turn + 3 * n, widest), dtype)
    samples, sent = np.zeros((BLOCK * n, n_in), dtype), np.zeros((BLOCK * n, n_first), dtype)
    learned, overlaps = np.zeros((BLOCK * n, n_first), dtype), np.zeros((BLOCK * n, BLOCK * n), dtype)
    rate, share, one = real(step_size), real(1 / n), real(1)
    keep, keep_q = real(1 - step_size * weight_decay), real(1 - step_size * q_rate * weight_decay)
    for start in range(0, n_steps, BLOCK):
        steps = min(BLOCK, n_steps - start)
        for row in range(steps * n):
            for i in range(n_in):
                samples[row, i] = inputs[start + row // n, row % n, i]
        _times_transposed(samples, 0, own[0], sent, 0, steps * n)
        _times_transposed(samples, 0, samples, overlaps, 0, steps * n)
        _fade(sent, steps, n, keep, False)
        for step in range(steps):
            now, ago = (0, turn) if step % 2 == 0 else (turn, 0)  # BLOCK is even
            error, waiting = errors + now, errors + ago
            _send_within(sent, overlaps, learned, step, n, rate, keep, v, now + n)
            for l in range(1, top):
                kept, up = keep if start + step > 0 else one, (l + 1) * n
                _descend_and_send(own[l], v, n, waiting + up, ago + l * n, rate, kept, now + l * n, now + up)
            for b in range(n):
                for o in range(n_out):
                    v[label + b, o] = labels[start + step, b, o]
                    v[error + top * n + b, o] = share * (v[now + top * n + b, o] - v[label + b, o])
            for l in range(top - 1, 0, -1):
                here, p, q = error + l * n, reader[l], mirror[l]
                read = error + (top if direct else l + 1) * n
                seen = read if p.shape[0] == 0 else z
                if seen == z:
                    _times_transposed(v, read, p, v, z, n)
                if way == 1:
                    _times(v, n, seen, q, real(gains[l]), here)
                elif way == 2 and seen == read:
                    _times(v, n, read, own[l], real(gains[l]), here)
                elif way == 2:
                    _times(v, n, z, p, real(gains[l]), rest)
                    _times(v, n, rest, own[l], one, here)
                if q_rate != 0.0:
                    _descend(q, v, seen, v, now + l * n, n, real(step_size * q_rate), keep_q)
                if p_rate != 0.0 and on_labels and (direct or l == top - 1):
                    _oja(p, v, n, label, z, rest, real(step_size * p_rate / n))
                elif p_rate != 0.0:
                    _oja(p, v, n, read, z, rest, real(step_size * p_rate * n))
            for b in range(n):
                for o in range(n_first):
                    learned[step * n + b, o] = v[error + n + b, o]
        _fade(learned, steps, n, keep, True)
        _descend(own[0], learned, 0, samples, 0, steps * n, rate, real(keep**steps))
    last = 0 if n_steps % 2 else turn
    for l in range(top):
        if l > 0:  # the step that waits, with the same instructions
            up = (l + 1) * n
            _descend_and_send(own[l], v, n, errors + last + up, last + l * n, rate, keep, label, rest)
            P[l][:] = reader[l]
            Q[l][:] = mirror[l]
        weights[l][:] = own[l]
