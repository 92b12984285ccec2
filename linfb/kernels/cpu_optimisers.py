"""Optimiser steps in one pass over memory each, compiled by numba: arguments are overwritten and returned.

Twins of :mod:`linfb.kernels.reference_optimisers`, where they are explained; ``tests/test_engine_optimisers.py``
holds them together. The passes go over fixed slices, on the threads of :mod:`linfb._threads`. Kernels take arrays as
(run, entry) and their numbers as (run, number): one row of each, unless numbers differ from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numba import njit
from numba.np.unsafe.ndarray import to_fixed_tuple

from linfb._threads import for_slices, later
from linfb._workspace import empty
from linfb.kernels.reference_optimisers import orthogonalised

__all__ = ["adam", "amsgrad", "muon", "orthogonalised", "rmsprop", "sgd"]

SLICE = 1 << 18
RUNS = 1 << 16
_unpacked: Any = to_fixed_tuple
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
def _sgd(value, gradient, velocity, numbers):
    for r in range(value.shape[0]):
        rate, momentum, lookahead, coupled, keep = _unpacked(numbers[r], 5)
        for i in range(value.shape[1]):
            g = gradient[r, i] + coupled * value[r, i]
            if velocity is not None:
                v = momentum * velocity[r, i] + g
                velocity[r, i] = v
                g = g + lookahead * v if lookahead > 0 else v
            value[r, i] = keep * value[r, i] - rate * g


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
def _rmsprop(value, gradient, second, mean, velocity, numbers):
    for r in range(value.shape[0]):
        rate, old, new, epsilon, momentum, coupled, keep = _unpacked(numbers[r], 7)
        for i in range(value.shape[1]):
            g = gradient[r, i] + coupled * value[r, i]
            s = old * second[r, i] + new * g * g
            second[r, i] = s
            if mean is not None:
                m = old * mean[r, i] + new * g
                mean[r, i] = m
                s = s - m * m
            d = g / (np.sqrt(s) + epsilon)
            if velocity is not None:
                d = momentum * velocity[r, i] + d
                velocity[r, i] = d
            value[r, i] = keep * value[r, i] - rate * d


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
def _adam(value, gradient, first, second, numbers):
    for r in range(value.shape[0]):
        rate, keep1, new1, keep2, new2, epsilon, coupled, keep, scale = _unpacked(numbers[r], 9)
        for i in range(value.shape[1]):
            g = gradient[r, i] + coupled * value[r, i]
            m = keep1 * first[r, i] + new1 * g
            v = keep2 * second[r, i] + new2 * g * g
            first[r, i] = m
            second[r, i] = v
            value[r, i] = keep * value[r, i] - rate * m / (np.sqrt(v) * scale + epsilon)


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
def _amsgrad(value, gradient, first, second, largest, numbers):
    for r in range(value.shape[0]):
        rate, keep1, new1, keep2, new2, epsilon, coupled, keep, scale = _unpacked(numbers[r], 9)
        for i in range(value.shape[1]):
            g = gradient[r, i] + coupled * value[r, i]
            m = keep1 * first[r, i] + new1 * g
            v = keep2 * second[r, i] + new2 * g * g
            top = largest[r, i] if largest[r, i] > v else v
            first[r, i] = m
            second[r, i] = v
            largest[r, i] = top
            value[r, i] = keep * value[r, i] - rate * m / (np.sqrt(top) * scale + epsilon)


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
    direction, runs = empty(value.shape, value.dtype), getattr(learning_rate, "ndim", 0)
    numbers = _cast(value, momentum, 1 - momentum, lookahead, 1 - lookahead, coupled)
    _sweep(_averaged, numbers, value, gradient, average, direction, cut=for_slices)
    matrix = direction.reshape(*value.shape[: runs + 1], -1)
    scale = learning_rate * sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1]))
    move = orthogonalised(matrix, steps).reshape(value.shape)
    _sweep(_sgd, _cast(value, scale, 0.0, 0.0, 0.0, 1 - learning_rate * decoupled), value, move, None)
    return value, average


@_compiled
def _averaged(value, gradient, average, direction, numbers):
    for r in range(value.shape[0]):
        old, new, lookahead, here, coupled = _unpacked(numbers[r], 5)
        for i in range(value.shape[1]):
            g = gradient[r, i] + coupled * value[r, i]
            a = old * average[r, i] + new * g
            average[r, i] = a
            direction[r, i] = here * g + lookahead * a if lookahead > 0 else a


def _adam_numbers(
    value: Any, learning_rate: float, beta1: float, beta2: float, epsilon: float, coupled: float, decoupled: float,
    step: int,
) -> np.ndarray:  # fmt: skip
    rate, scale = learning_rate / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
    keep = 1 - learning_rate * decoupled
    return _cast(value, rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, coupled, keep, scale)


def _cast(value: np.ndarray, *numbers: Any) -> np.ndarray:
    """Return numbers in the array's precision, so that the loop stays in it: (run, number), or one row for all runs."""
    of_runs = [number for number in numbers if isinstance(number, np.ndarray)]
    if not of_runs:
        return np.array([numbers], value.dtype)
    table = np.empty((of_runs[0].size, len(numbers)), value.dtype)
    for i, number in enumerate(numbers):
        table[:, i] = number
    return table


def _sweep(
    kernel: Callable[..., None], numbers: np.ndarray, value: np.ndarray, *others: np.ndarray | None,
    cut: Callable[..., Any] = later,
) -> None:  # fmt: skip
    """Run a kernel over slices of arrays of one shape and dtype; it writes to all but the second.

    Inside of :func:`linfb._threads.together` it is run at the end, unless it is `cut` by another function.
    """
    runs = len(numbers)
    rows = _rows(runs, value, *others)

    def part(start: int, stop: int) -> None:
        some = slice(start, stop)
        at, own = ((slice(None), some), numbers) if runs == 1 else ((some,), numbers[some])
        kernel(*(None if array is None else array[at] for array in rows), own)

    if runs == 1:
        cut(part, value.size, SLICE)
    else:
        cut(part, runs, max(1, RUNS // max(1, value.size // runs)))


def _rows(runs: int, value: np.ndarray, gradient: Any, *state: np.ndarray | None) -> list[np.ndarray | None]:
    """Return views (run, entry) of arrays of one shape and dtype; all but the gradient will be written to."""
    for array in (gradient, *state):
        if array is not None and (array.shape != value.shape or array.dtype != value.dtype):
            raise ValueError(
                f"arrays must agree: value is {value.shape} {value.dtype}, another {array.shape} {array.dtype}"
            )
    for array in (value, *state):
        if array is not None and not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("arrays that are overwritten must be C-contiguous and writeable")
    arrays = (value, np.ascontiguousarray(gradient), *state)
    return [None if array is None else array.reshape(runs, -1) for array in arrays]
