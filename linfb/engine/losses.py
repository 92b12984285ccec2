"""Losses: an average over the batch, and its derivative with respect to the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float

from linfb.backend import namespace

__all__ = ["LOSSES", "cross_entropy", "squared_error"]


def cross_entropy(
    outputs: Float[Any, "batch out"], targets: Float[Any, "batch out"]
) -> tuple[Any, Float[Any, "batch out"]]:
    r"""Return softmax cross-entropy and its derivative.

    .. math:: L = -\frac1n\sum_i \sum_c y_{ic}\log p_{ic},\qquad
              \frac{\partial L}{\partial a} = \frac{p - y}{n},\qquad p = \operatorname{softmax}(a)

    Parameters
    ----------
    outputs : array, shape (batch, out)
        Unnormalised log-probabilities a.
    targets : array, shape (batch, out)
        One-hot labels y (rows that sum to one).

    Returns
    -------
    loss : array, shape ()
    delta : array, shape (batch, out)

    Examples
    --------
    >>> import numpy as np
    >>> loss, delta = cross_entropy(np.zeros((1, 2)), np.array([[1.0, 0.0]]))
    >>> float(loss), delta
    (0.693147, array([[-0.5,  0.5]]))
    """
    xp, rows = namespace(outputs, targets), outputs.shape[0]
    shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = xp.sum(exponentials, axis=-1, keepdims=True)
    loss = (xp.sum(xp.log(total)) - xp.sum(targets * shifted)) / rows
    return loss, (exponentials / total - targets) / rows


def squared_error(
    outputs: Float[Any, "batch out"], targets: Float[Any, "batch out"]
) -> tuple[Any, Float[Any, "batch out"]]:
    r"""Return half the squared error, summed over outputs and averaged over rows, and its derivative.

    .. math:: L = \frac{1}{2n}\sum_i \|a_i - y_i\|^2,\qquad \frac{\partial L}{\partial a} = \frac{a - y}{n}

    With this convention a full-batch gradient step of a linear network is one Euler step of the theory's flow.

    Parameters
    ----------
    outputs, targets : array, shape (batch, out)

    Returns
    -------
    loss : array, shape ()
    delta : array, shape (batch, out)

    Examples
    --------
    >>> import numpy as np
    >>> squared_error(np.array([[2.0], [0.0]]), np.zeros((2, 1)))[0]
    np.float64(1.0)
    """
    xp, rows = namespace(outputs, targets), outputs.shape[0]
    difference = outputs - targets
    return xp.sum(difference * difference) / (2 * rows), difference / rows


LOSSES: dict[str, Callable[..., tuple[Any, Any]]] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
"""The losses that :func:`linfb.engine.train` knows by name."""
