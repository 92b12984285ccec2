"""Optimiser steps in one pass over memory each, compiled by numba: arguments are overwritten and returned.

Twins of :mod:`linfb.kernels.reference_optimisers`, where they are explained; ``tests/test_engine_optimisers.py``
holds them together. The passes go over fixed slices, on the threads of :mod:`linfb._threads`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels.reference_optimisers import orthogonalised

__all__ = ["adam", "amsgrad", "muon", "orthogonalised", "rmsprop", "sgd"]

SLICE = 1 << 18
_compiled = njit(cache=True, nogil=True, error_model="numpy")


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
    """Take one step of gradient descent with momentum; overwrites `value` and `velocity`."""
    numbers = _cast(value, learning_rate, momentum, lookahead, coupled, 1 - learning_rate * decoupled)
    _sweep(_sgd, numbers, value, gradient, velocity)
    return value, velocity


@_compiled
def _sgd(value, gradient, velocity, rate, momentum, lookahead, coupled, keep):
    for i in range(value.size):
        g = gradient[i] + coupled * value[i]
        if velocity is not None:
            v = momentum * velocity[i] + g
            velocity[i] = v
            g = g + lookahead * v if lookahead > 0 else v
        value[i] = keep * value[i] - rate * g


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
    """Take one step of RMSprop; overwrites `value`, `second`, `mean` and `velocity`."""
    keep = 1 - learning_rate * decoupled
    numbers = _cast(value, learning_rate, alpha, 1 - alpha, epsilon, momentum, coupled, keep)
    _sweep(_rmsprop, numbers, value, gradient, second, mean, velocity)
    return value, second, mean, velocity


@_compiled
def _rmsprop(value, gradient, second, mean, velocity, rate, old, new, epsilon, momentum, coupled, keep):
    for i in range(value.size):
        g = gradient[i] + coupled * value[i]
        s = old * second[i] + new * g * g
        second[i] = s
        if mean is not None:
            m = old * mean[i] + new * g
            mean[i] = m
            s = s - m * m
        d = g / (np.sqrt(s) + epsilon)
        if velocity is not None:
            d = momentum * velocity[i] + d
            velocity[i] = d
        value[i] = keep * value[i] - rate * d


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
    _sweep(_adam, numbers, value, gradient, first, second)
    return value, first, second


@_compiled
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
    _sweep(_amsgrad, numbers, value, gradient, first, second, largest)
    return value, first, second, largest


@_compiled
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
    """Take one step of Muon; overwrites `value` and `average`."""
    direction = empty(value.shape, value.dtype)
    numbers = _cast(value, momentum, 1 - momentum, lookahead, 1 - lookahead, coupled)
    _sweep(_averaged, numbers, value, gradient, average, direction)
    matrix = direction.reshape(value.shape[0], -1)
    scale = learning_rate * sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
    move = orthogonalised(matrix, steps).reshape(value.shape)
    _sweep(_sgd, _cast(value, scale, 0.0, 0.0, 0.0, 1 - learning_rate * decoupled), value, move, None)
    return value, average


@_compiled
def _averaged(value, gradient, average, direction, old, new, lookahead, here, coupled):
    for i in range(value.size):
        g = gradient[i] + coupled * value[i]
        a = old * average[i] + new * g
        average[i] = a
        direction[i] = here * g + lookahead * a if lookahead > 0 else a


def _adam_numbers(
    value: Any, learning_rate: float, beta1: float, beta2: float, epsilon: float, coupled: float, decoupled: float,
    step: int,
) -> tuple[Any, ...]:  # fmt: skip
    rate, scale = learning_rate / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
    keep = 1 - learning_rate * decoupled
    return _cast(value, rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, coupled, keep, scale)


def _cast(value: np.ndarray, *numbers: float) -> tuple[Any, ...]:
    """Return numbers in the array's precision, so that the loop stays in it."""
    return tuple(np.array(numbers, value.dtype))


def _sweep(
    kernel: Callable[..., None], numbers: tuple[Any, ...], value: np.ndarray, *others: np.ndarray | None
) -> None:
    """Run a kernel over flat slices of arrays of one shape and dtype; it writes to all but the second."""
    arrays = _flat(value, *others)

    def part(start: int, stop: int) -> None:
        kernel(*(None if array is None else array[start:stop] for array in arrays), *numbers)

    for_slices(part, value.size, SLICE)


def _flat(value: np.ndarray, gradient: Any, *state: np.ndarray | None) -> list[np.ndarray | None]:
    """Return flat views of arrays of one shape and dtype; all but the gradient will be written to."""
    for array in (gradient, *state):
        if array is not None and (array.shape != value.shape or array.dtype != value.dtype):
            raise ValueError(
                f"arrays must agree: value is {value.shape} {value.dtype}, another {array.shape} {array.dtype}"
            )
    for array in (value, *state):
        if array is not None and not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("arrays that are overwritten must be C-contiguous and writeable")
    arrays = (value, np.ascontiguousarray(gradient), *state)
    return [None if array is None else array.reshape(-1) for array in arrays]
