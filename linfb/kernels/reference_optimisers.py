"""Optimiser steps written plainly in the array-API standard: new arrays, nothing overwritten. The oracles.

Every function has a twin of the same name and signature in :mod:`linfb.kernels.cpu_optimisers`, which works in place.

Of an ensemble all arrays have a leading run axis, and `learning_rate`, `coupled` and `decoupled` may be NumPy arrays of
shape (run,), one number for each run. Muon takes the first axis for that of runs if its learning rate is such an array.
"""

from __future__ import annotations

import math
from typing import Any

from linfb._threads import rows
from linfb.backend import namespace, transpose

__all__ = ["adam", "amsgrad", "muon", "orthogonalised", "rmsprop", "sgd"]


def _spread(number: Any, value: Any) -> Any:
    """Return a number as it is, and those of runs so that each acts on its own part of a value (run, ...)."""
    if not hasattr(number, "shape"):
        return number
    xp = namespace(value)
    return xp.reshape(xp.asarray(number, dtype=value.dtype), (*number.shape, *(1,) * (value.ndim - number.ndim)))


def sgd(
    value: Any,
    gradient: Any,
    velocity: Any | None,
    learning_rate: float,
    momentum: float,
    lookahead: float,
    coupled: float,
    decoupled: float,
) -> tuple[Any, Any | None]:
    r"""Take one step of gradient descent with momentum.

    .. math:: g \leftarrow g + \lambda_c w,\qquad v \leftarrow \mu v + g,\qquad
              w \leftarrow (1 - \eta\lambda_d)\,w - \eta d

    with :math:`d = v`, or Nesterov's :math:`d = g + \nu v`.

    Parameters
    ----------
    value, gradient, velocity : array
        All of one shape; the velocity is zero before the first step, and None for steps without momentum.
    learning_rate : float
        :math:`\eta`.
    momentum : float
        :math:`\mu`.
    lookahead : float
        :math:`\nu`: the momentum again for Nesterov's form; 0 for the plain one.
    coupled, decoupled : float
        :math:`\lambda_c` (added to the gradient) and :math:`\lambda_d` (acts on the weights alone).

    Returns
    -------
    value, velocity : array
    """
    direction = gradient = gradient + _spread(coupled, value) * value
    if velocity is not None:
        velocity = momentum * velocity + gradient
        direction = gradient + lookahead * velocity if lookahead else velocity
    return _spread(1 - learning_rate * decoupled, value) * value - _spread(learning_rate, value) * direction, velocity


def rmsprop(
    value: Any,
    gradient: Any,
    second: Any,
    mean: Any | None,
    velocity: Any | None,
    learning_rate: float,
    alpha: float,
    epsilon: float,
    momentum: float,
    coupled: float,
    decoupled: float,
) -> tuple[Any, Any, Any | None, Any | None]:
    """Take one step of RMSprop, see :func:`linfb.engine.optimisers.rmsprop` for the equations.

    Parameters
    ----------
    value, gradient : array
    second, mean, velocity : array
        Running second moment, running mean and velocity, zero before the first step; without a mean (None) the
        moment is not centred, without a velocity (None) there is no momentum.
    learning_rate, alpha, epsilon, momentum : float
    coupled, decoupled : float
        Weight decay added to the gradient, and acting on the weights alone.

    Returns
    -------
    value, second, mean, velocity : array
    """
    gradient = gradient + _spread(coupled, value) * value
    second = alpha * second + (1 - alpha) * gradient * gradient
    variance = second
    if mean is not None:
        mean = alpha * mean + (1 - alpha) * gradient
        variance = second - mean * mean
    direction = gradient / (namespace(second).sqrt(variance) + epsilon)
    if velocity is not None:
        direction = velocity = momentum * velocity + direction
    kept, move = _spread(1 - learning_rate * decoupled, value) * value, _spread(learning_rate, value) * direction
    return kept - move, second, mean, velocity


def adam(
    value: Any,
    gradient: Any,
    first: Any,
    second: Any,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    coupled: float,
    decoupled: float,
    step: int,
) -> tuple[Any, Any, Any]:
    """Take one step of Adam, see :func:`linfb.engine.optimisers.adam` for the equations.

    Parameters
    ----------
    value, gradient : array
    first, second : array
        The running moments, zero before the first step.
    learning_rate, beta1, beta2, epsilon : float
    coupled, decoupled : float
        Weight decay added to the gradient, and acting on the weights alone.
    step : int
        Number of this step, from 1.

    Returns
    -------
    value, first, second : array
    """
    gradient = gradient + _spread(coupled, value) * value
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient * gradient
    move = _move(first, second, learning_rate, beta1, beta2, epsilon, step)
    return _spread(1 - learning_rate * decoupled, value) * value - move, first, second


def amsgrad(
    value: Any,
    gradient: Any,
    first: Any,
    second: Any,
    largest: Any,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    coupled: float,
    decoupled: float,
    step: int,
) -> tuple[Any, Any, Any, Any]:
    """Take one step of AMSGrad: as :func:`adam`, with the largest second moment so far in the denominator."""
    gradient = gradient + _spread(coupled, value) * value
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient * gradient
    largest = namespace(second).maximum(largest, second)
    move = _move(first, largest, learning_rate, beta1, beta2, epsilon, step)
    return _spread(1 - learning_rate * decoupled, value) * value - move, first, second, largest


def _move(first: Any, second: Any, learning_rate: float, beta1: float, beta2: float, epsilon: float, step: int) -> Any:
    scale = 1 / math.sqrt(1 - beta2**step)
    rate = _spread(learning_rate / (1 - beta1**step), first)
    return rate * first / (namespace(second).sqrt(second) * scale + epsilon)


def muon(
    value: Any,
    gradient: Any,
    average: Any,
    learning_rate: float,
    momentum: float,
    lookahead: float,
    steps: int,
    coupled: float,
    decoupled: float,
) -> tuple[Any, Any]:
    """Take one step of Muon, see :func:`linfb.engine.optimisers.muon` for the equations.

    Parameters
    ----------
    value, gradient, average : array, shape (out, ...) or (run, out, ...)
        A matrix at least; the average of gradients is zero before the first step.
    learning_rate, momentum : float
    lookahead : float
        The momentum again for Nesterov's form; 0 for the plain one.
    steps : int
        Of :func:`orthogonalised`.
    coupled, decoupled : float
        Weight decay added to the gradient, and acting on the weights alone.

    Returns
    -------
    value, average : array
    """
    gradient = gradient + _spread(coupled, value) * value
    average = momentum * average + (1 - momentum) * gradient
    direction = (1 - lookahead) * gradient + lookahead * average if lookahead else average
    runs = getattr(learning_rate, "ndim", 0)
    matrix = namespace(value).reshape(direction, (*value.shape[: runs + 1], -1))
    scale = _spread(learning_rate * math.sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1])), matrix)
    move = namespace(value).reshape(scale * orthogonalised(matrix, steps), value.shape)
    return _spread(1 - learning_rate * decoupled, value) * value - move, average


def orthogonalised(matrix: Any, steps: int) -> Any:
    r"""Return a matrix with nearly the same singular vectors and singular values near 1, by a quintic iteration.

    .. math:: X_0 = \frac{G}{\max(|G|, 10^{-7})},\qquad
              X_{k+1} = 3.4445\,X_k - 4.7750\,X_k X_k^\top X_k + 2.0315\,(X_k X_k^\top)^2 X_k

    Every step maps each singular value by that polynomial and leaves the singular vectors alone. Products only, so
    that it runs wherever matrices are multiplied; those of NumPy arrays go to the threads of :mod:`linfb._threads`.

    Parameters
    ----------
    matrix : array, shape (..., out, in)
    steps : int
        Five take singular values above 0.0015 of the Frobenius norm into [0.67, 1.21]; smaller ones grow 485-fold.

    Returns
    -------
    array, shape (..., out, in)
    """
    xp, wide = namespace(matrix), matrix.shape[-2] <= matrix.shape[-1]
    norm = xp.sqrt(xp.sum(matrix * matrix, axis=(-2, -1), keepdims=True))
    x = (matrix if wide else transpose(matrix)) / xp.maximum(norm, xp.full_like(norm, 1e-7))
    for _ in range(steps):
        square = rows(x, transpose(x))
        x = 3.4445 * x + rows(-4.7750 * square + 2.0315 * rows(square, square), x)
    return x if wide else transpose(x)
