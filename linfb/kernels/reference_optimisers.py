"""Optimiser steps written plainly in the array-API standard: new arrays, nothing overwritten. The oracles.

Every function has a twin of the same name and signature in :mod:`linfb.kernels.cpu_optimisers`, which works in place.
"""

from __future__ import annotations

from typing import Any

from linfb.backend import namespace

__all__ = ["adam", "amsgrad", "sgd"]


def sgd(
    value: Any,
    gradient: Any,
    velocity: Any,
    learning_rate: float,
    momentum: float,
    lookahead: float,
    coupled: float,
    decoupled: float,
) -> tuple[Any, Any]:
    r"""Take one step of gradient descent with momentum.

    .. math:: g \leftarrow g + \lambda_c w,\qquad v \leftarrow \mu v + g,\qquad
              w \leftarrow (1 - \eta\lambda_d)\,w - \eta d

    with :math:`d = v`, or Nesterov's :math:`d = g + \nu v`.

    Parameters
    ----------
    value, gradient, velocity : array
        All of one shape; the velocity is zero before the first step.
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
    gradient = gradient + coupled * value
    velocity = momentum * velocity + gradient
    direction = gradient + lookahead * velocity if lookahead else velocity
    return (1 - learning_rate * decoupled) * value - learning_rate * direction, velocity


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
    gradient = gradient + coupled * value
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient * gradient
    move = _move(first, second, learning_rate, beta1, beta2, epsilon, step)
    return (1 - learning_rate * decoupled) * value - move, first, second


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
    gradient = gradient + coupled * value
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient * gradient
    largest = namespace(second).maximum(largest, second)
    move = _move(first, largest, learning_rate, beta1, beta2, epsilon, step)
    return (1 - learning_rate * decoupled) * value - move, first, second, largest


def _move(first: Any, second: Any, learning_rate: float, beta1: float, beta2: float, epsilon: float, step: int) -> Any:
    deviation = namespace(second).sqrt(second / (1 - beta2**step))
    return learning_rate / (1 - beta1**step) * first / (deviation + epsilon)
