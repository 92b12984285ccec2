"""Optimiser steps in one pass over memory each, compiled by numba: arguments are overwritten and returned.

Twins of :mod:`linfb.kernels.reference_optimisers`, where they are explained; ``tests/test_engine_optimisers.py``
holds them together.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numba import njit

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
    """Take one step of gradient descent with momentum; overwrites `value` and `velocity`."""
    numbers = _cast(value, learning_rate, momentum, lookahead, coupled, 1 - learning_rate * decoupled)
    _sgd(*_flat(value, gradient, velocity), *numbers)
    return value, velocity


@njit(cache=True, nogil=True, error_model="numpy")
def _sgd(value, gradient, velocity, rate, momentum, lookahead, coupled, keep):
    for i in range(value.size):
        g = gradient[i] + coupled * value[i]
        v = momentum * velocity[i] + g
        velocity[i] = v
        value[i] = keep * value[i] - rate * (g + lookahead * v if lookahead > 0 else v)


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
    """Take one step of Adam; overwrites `value`, `first` and `second`."""
    numbers = _adam_numbers(value, learning_rate, beta1, beta2, epsilon, coupled, decoupled, step)
    _adam(*_flat(value, gradient, first, second), *numbers)
    return value, first, second


@njit(cache=True, nogil=True, error_model="numpy")
def _adam(value, gradient, first, second, rate, keep1, new1, keep2, new2, epsilon, coupled, keep, scale):
    for i in range(value.size):
        g = gradient[i] + coupled * value[i]
        m = keep1 * first[i] + new1 * g
        v = keep2 * second[i] + new2 * g * g
        first[i] = m
        second[i] = v
        value[i] = keep * value[i] - rate * m / (np.sqrt(v) * scale + epsilon)


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
    """Take one step of AMSGrad; overwrites `value`, `first`, `second` and `largest`."""
    numbers = _adam_numbers(value, learning_rate, beta1, beta2, epsilon, coupled, decoupled, step)
    _amsgrad(*_flat(value, gradient, first, second, largest), *numbers)
    return value, first, second, largest


@njit(cache=True, nogil=True, error_model="numpy")
def _amsgrad(value, gradient, first, second, largest, rate, keep1, new1, keep2, new2, epsilon, coupled, keep, scale):
    for i in range(value.size):
        g = gradient[i] + coupled * value[i]
        m = keep1 * first[i] + new1 * g
        v = keep2 * second[i] + new2 * g * g
        top = largest[i] if largest[i] > v else v
        first[i] = m
        second[i] = v
        largest[i] = top
        value[i] = keep * value[i] - rate * m / (np.sqrt(top) * scale + epsilon)


def _adam_numbers(
    value: Any, learning_rate: float, beta1: float, beta2: float, epsilon: float, coupled: float, decoupled: float,
    step: int,
) -> tuple[Any, ...]:  # fmt: skip
    rate, scale = learning_rate / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
    keep = 1 - learning_rate * decoupled
    return _cast(value, rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, coupled, keep, scale)


def _cast(value: np.ndarray, *numbers: float) -> tuple[Any, ...]:
    """Return numbers in the array's precision, so that the loop stays in it."""
    return tuple(value.dtype.type(number) for number in numbers)


def _flat(value: np.ndarray, gradient: np.ndarray, *state: np.ndarray) -> list[np.ndarray]:
    """Return flat views of arrays of one shape and dtype; all but the gradient will be written to."""
    for array in (gradient, *state):
        if array.shape != value.shape or array.dtype != value.dtype:
            raise ValueError(
                f"arrays must agree: value is {value.shape} {value.dtype}, another {array.shape} {array.dtype}"
            )
    for array in (value, *state):
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("arrays that are overwritten must be C-contiguous and writeable")
    return [array.reshape(-1) for array in (value, np.ascontiguousarray(gradient), *state)]
