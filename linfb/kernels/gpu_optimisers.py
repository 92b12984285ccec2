"""Optimiser steps in one pass over memory each on a CUDA device: arguments are overwritten and returned.

Twins of :mod:`linfb.kernels.reference_optimisers`, where they are explained. Muon is made of matrix products and is
that of the reference: it returns new arrays. A kernel reads its numbers from device memory, one row of them per run
(in the order of `numbers` below), so that they can change under a captured step.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from linfb._live import Live, live
from linfb.backend import namespace
from linfb.kernels import _cuda, reference_optimisers
from linfb.kernels.reference_optimisers import orthogonalised

__all__ = ["adam", "amsgrad", "muon", "orthogonalised", "rmsprop", "sgd"]

SOURCE = """
template <typename T>
__global__ void sgd(int size, int per_run, const wide<T>* numbers, T* value, const T* gradient, T* velocity) {
    int i = row();
    if (i >= size) return;
    const wide<T>* own = numbers + i / per_run * 5;
    wide<T> rate = own[0], momentum = own[1], lookahead = own[2], coupled = own[3], keep = own[4];
    wide<T> w = wide<T>(value[i]), g = wide<T>(gradient[i]) + coupled * w;
    if (velocity) {
        wide<T> v = momentum * wide<T>(velocity[i]) + g;
        velocity[i] = T(v);
        g = lookahead > 0 ? g + lookahead * v : v;
    }
    value[i] = T(keep * w - rate * g);
}

template <typename T>
__global__ void rmsprop(int size, int per_run, const wide<T>* numbers, T* value, const T* gradient, T* second, T* mean,
                        T* velocity) {
    int i = row();
    if (i >= size) return;
    const wide<T>* own = numbers + i / per_run * 7;
    wide<T> rate = own[0], older = own[1], newest = own[2], epsilon = own[3], momentum = own[4], coupled = own[5];
    wide<T> keep = own[6];
    wide<T> w = wide<T>(value[i]), g = wide<T>(gradient[i]) + coupled * w;
    wide<T> s = older * wide<T>(second[i]) + newest * g * g;
    second[i] = T(s);
    if (mean) {
        wide<T> m = older * wide<T>(mean[i]) + newest * g;
        mean[i] = T(m);
        s -= m * m;
    }
    wide<T> d = g / (sqrt(s) + epsilon);
    if (velocity) {
        d += momentum * wide<T>(velocity[i]);
        velocity[i] = T(d);
    }
    value[i] = T(keep * w - rate * d);
}

template <typename T>
__global__ void adam(int size, int per_run, const wide<T>* numbers, T* value, const T* gradient, T* first, T* second,
                     T* largest) {
    int i = row();
    if (i >= size) return;
    const wide<T>* own = numbers + i / per_run * 9;
    wide<T> rate = own[0], keep1 = own[1], new1 = own[2], keep2 = own[3], new2 = own[4], epsilon = own[5];
    wide<T> coupled = own[6], keep = own[7], scale = own[8];
    wide<T> w = wide<T>(value[i]), g = wide<T>(gradient[i]) + coupled * w;
    wide<T> m = keep1 * wide<T>(first[i]) + new1 * g, v = keep2 * wide<T>(second[i]) + new2 * g * g;
    first[i] = T(m);
    second[i] = T(v);
    if (largest) {
        wide<T> before = wide<T>(largest[i]);
        v = before > v ? before : v;
        largest[i] = T(v);
    }
    value[i] = T(keep * w - rate * m / (sqrt(v) * scale + epsilon));
}
"""


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
    numbers = live(_sgd_numbers, learning_rate, momentum, lookahead, coupled, decoupled)
    _sweep("sgd", numbers, value, gradient, velocity)
    return value, velocity


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
    numbers = live(_rmsprop_numbers, learning_rate, alpha, epsilon, momentum, coupled, decoupled)
    _sweep("rmsprop", numbers, value, gradient, second, mean, velocity)
    return value, second, mean, velocity


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
    numbers = live(_adam_numbers, learning_rate, beta1, beta2, epsilon, coupled, decoupled, step)
    _sweep("adam", numbers, value, gradient, first, second, None)
    return value, first, second


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
    numbers = live(_adam_numbers, learning_rate, beta1, beta2, epsilon, coupled, decoupled, step)
    _sweep("adam", numbers, value, gradient, first, second, largest)
    return value, first, second, largest


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
    """Take one step of Muon; returns new arrays."""
    rate, coupled, decoupled = (_on_device(number, value) for number in (learning_rate, coupled, decoupled))
    return reference_optimisers.muon(value, gradient, average, rate, momentum, lookahead, steps, coupled, decoupled)


def _on_device(number: Any, like: Any) -> Any:
    """Return a plain number as it is, those of runs and live ones as an array."""
    if not isinstance(number, Live | np.ndarray):
        return number
    shape = np.shape(number.now() if isinstance(number, Live) else number)
    return _cuda.held(number, np.float64, like).reshape(shape)


def _sgd_numbers(rate: Any, momentum: float, lookahead: float, coupled: Any, decoupled: Any) -> np.ndarray:
    return _packed(rate, momentum, lookahead, coupled, 1 - rate * decoupled)


def _rmsprop_numbers(
    rate: Any, alpha: float, epsilon: float, momentum: float, coupled: Any, decoupled: Any
) -> np.ndarray:
    return _packed(rate, alpha, 1 - alpha, epsilon, momentum, coupled, 1 - rate * decoupled)


def _adam_numbers(
    rate: Any, beta1: float, beta2: float, epsilon: float, coupled: Any, decoupled: Any, step: int
) -> np.ndarray:
    corrected, scale = rate / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
    return _packed(corrected, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, coupled, 1 - rate * decoupled, scale)


def _packed(*numbers: Any) -> np.ndarray:
    """Return numbers next to each other, shape (number,); if some are those of runs, shape (run, number)."""
    return np.stack(np.broadcast_arrays(*(np.asarray(number, dtype=np.float64) for number in numbers)), axis=-1)


def _sweep(name: str, numbers: Any, value: Any, gradient: Any, *state: Any | None) -> None:
    """Run a kernel over all entries of arrays of one shape and dtype; it writes to all but the gradient."""
    for array in (gradient, *state):
        if array is not None and (array.shape != value.shape or array.dtype != value.dtype):
            raise ValueError(
                f"arrays must agree: value is {value.shape} {value.dtype}, another {array.shape} {array.dtype}"
            )
    for array in (value, *state):
        if array is not None and not array.flags.c_contiguous:
            raise ValueError("arrays that are overwritten must be C-contiguous")
    numbers = _cuda.held(numbers, _cuda.wide(value.dtype), value)
    if numbers.ndim == 2 and value.shape[:1] != numbers.shape[:1]:
        raise ValueError(f"there are numbers of {numbers.shape[0]} runs, but value has shape {value.shape}")
    per_run = value.size // (numbers.shape[0] if numbers.ndim == 2 else 1)
    gradient = namespace(value, gradient).ascontiguousarray(gradient)
    _cuda.launch(SOURCE, name, value.dtype, value.size, 1, value.size, per_run, numbers, value, gradient, *state)
