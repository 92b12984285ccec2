"""The oracles: every compiled kernel again, written for reading, with the same name and signature."""

from __future__ import annotations

import numpy as np

__all__ = ["online_sgd"]

BLOCK = 8
"""Cutting a compiled run into two changes no bit where this many steps, or a multiple of it, lie before the cut."""


def online_sgd(weights, P, Q, gains, inputs, labels, step_size, weight_decay, way, q_rate, p_rate, on_labels, direct):
    """Advance one linear network by a gradient step per entry of `inputs`, in place.

    Parameters
    ----------
    weights, P, Q : tuple of (out, in), (rank, out), (rank, in) arrays of one precision
        One entry per layer; those of P and Q for the first layer are not used. P of zero rows is the identity.
    gains : (layer,) array
    inputs, labels : (step, batch, in), (step, batch, out) arrays
    step_size, weight_decay : float
    way : int
        How errors are carried: 0 not at all, 1 through Q, 2 through the weights.
    q_rate, p_rate : float
        Rates of a Kolen-Pollack mirror and of an Oja reader; 0 where they rest.
    on_labels, direct : bool
        Whether the output's reader follows the labels; whether all channels read the network's error.
    """
    batch = inputs.shape[1]
    for x, y in zip(inputs, labels, strict=True):
        activity = [x]
        for W in weights:
            activity.append(activity[-1] @ W.T)
        error = delta = (activity[-1] - y) / batch
        for l in range(len(weights) - 1, -1, -1):
            W, below, own = weights[l].copy(), activity[l], delta
            weights[l][...] = W - step_size * (own.T @ below + weight_decay * W)
            if l == 0:
                break
            read = error if direct else own
            reader = P[l].copy() if len(P[l]) else np.eye(read.shape[1])
            z = read @ reader.T
            kernel = Q[l].copy() if way == 1 else reader @ W if way == 2 else np.zeros((len(reader), W.shape[1]))
            delta = gains[l] * z @ kernel
            if q_rate:
                Q[l][...] = kernel - step_size * q_rate * (z.T @ below + weight_decay * kernel)
            if p_rate:
                rows = y if on_labels and (direct or l == len(weights) - 1) else batch * read
                covariance = rows.T @ rows / batch
                P[l][...] = reader + step_size * p_rate * (
                    reader @ covariance - reader @ covariance @ reader.T @ reader
                )
