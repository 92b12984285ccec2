"""Losses: an average over batch and positions, and its derivative with respect to the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float

from linfb.backend import namespace
from linfb.kernels import suited

__all__ = ["LOSSES", "cross_entropy", "one_hot", "squared_error"]


def cross_entropy(
    outputs: Float[Any, "*batch out"], targets: Float[Any, "*batch out"], leading: int = 0
) -> tuple[Any, Float[Any, "*batch out"]]:
    r"""Return softmax cross-entropy and its derivative.

    .. math:: L = -\frac1n\sum_i \sum_c y_{ic}\log p_{ic},\qquad
              \frac{\partial L}{\partial a} = \frac{p - y}{n},\qquad p = \operatorname{softmax}(a)

    Parameters
    ----------
    outputs : array, shape (batch, ..., out)
        Unnormalised log-probabilities a.
    targets : array, shape (batch, ..., out)
        Labels y: rows that sum to one, such as :func:`one_hot` makes.
    leading : int
        Number of axes before the batch; each of their entries has a loss of its own.

    Returns
    -------
    loss : array, shape (); or of the leading axes
    delta : array, shape (batch, ..., out)

    Examples
    --------
    >>> import numpy as np
    >>> loss, delta = cross_entropy(np.zeros((1, 2)), np.array([[1.0, 0.0]]))
    >>> float(loss), delta
    (0.693147, array([[-0.5,  0.5]]))
    """
    namespace(outputs, targets)  # of one library
    return suited("losses", outputs).cross_entropy(outputs, targets, leading)


def squared_error(
    outputs: Float[Any, "*batch out"], targets: Float[Any, "*batch out"], leading: int = 0
) -> tuple[Any, Float[Any, "*batch out"]]:
    r"""Return half the squared error, summed over outputs and averaged over rows, and its derivative.

    .. math:: L = \frac{1}{2n}\sum_i \|a_i - y_i\|^2,\qquad \frac{\partial L}{\partial a} = \frac{a - y}{n}

    With this convention a full-batch gradient step of a linear network is one Euler step of the theory's flow.

    Parameters
    ----------
    outputs, targets : array, shape (batch, ..., out)
    leading : int
        As for :func:`cross_entropy`.

    Returns
    -------
    loss : array, shape (); or of the leading axes
    delta : array, shape (batch, ..., out)

    Examples
    --------
    >>> import numpy as np
    >>> squared_error(np.array([[2.0], [0.0]]), np.zeros((2, 1)))[0]
    np.float64(1.0)
    """
    xp, rows, axes = namespace(outputs, targets), math.prod(outputs.shape[leading:-1]), _all_but(outputs, leading)
    difference = outputs - targets
    return xp.sum(difference * difference, axis=axes) / (2 * rows), difference / rows


def _all_but(array: Any, leading: int) -> tuple[int, ...] | None:
    return tuple(range(leading, array.ndim)) if leading else None


def one_hot(labels: Any, n_classes: int, *, like: Any, smoothing: float = 0.0) -> Any:
    r"""Return labels as rows of probabilities, :math:`y_c = (1 - s)\,[c = \text{label}] + s/C`.

    Parameters
    ----------
    labels : array of int, shape (batch, ...)
    n_classes : int
        :math:`C`.
    like : array
        Decides the precision.
    smoothing : float
        :math:`s` in [0, 1), the share of every label that is spread over all classes.

    Examples
    --------
    >>> import numpy as np
    >>> one_hot(np.array([1]), 2, like=np.zeros(1), smoothing=0.1)
    array([[0.05, 0.95]])
    """
    xp = namespace(labels, like)
    table = (1 - smoothing) * xp.eye(n_classes, dtype=like.dtype) + smoothing / n_classes
    rows = xp.take(table, xp.reshape(labels, (-1,)), axis=0)
    return xp.reshape(rows, (*labels.shape, n_classes))


LOSSES: dict[str, Callable[..., tuple[Any, Any]]] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
"""The losses that :func:`linfb.engine.train` knows by name."""
