"""Optimiser steps in one pass over memory each on a CUDA device: arguments are overwritten and returned.

Twins of :mod:`linfb.kernels.reference_optimisers`, where they are explained. Muon is made of matrix products and is
taken from there: it returns new arrays.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from linfb.backend import namespace
from linfb.kernels import _cuda
from linfb.kernels.reference_optimisers import muon, orthogonalised

__all__ = ["adam", "amsgrad", "muon", "orthogonalised", "rmsprop", "sgd"]

SOURCE = """
template <typename T>
__global__ void sgd(int size, T* value, const T* gradient, T* velocity, wide<T> rate, wide<T> momentum,
                    wide<T> lookahead, wide<T> coupled, wide<T> keep) {
    int i = row();
    if (i >= size) return;
    wide<T> w = wide<T>(value[i]), g = wide<T>(gradient[i]) + coupled * w;
    if (velocity) {
        wide<T> v = momentum * wide<T>(velocity[i]) + g;
        velocity[i] = T(v);
        g = lookahead > 0 ? g + lookahead * v : v;
    }
    value[i] = T(keep * w - rate * g);
}

template <typename T>
__global__ void rmsprop(int size, T* value, const T* gradient, T* second, T* mean, T* velocity, wide<T> rate,
                        wide<T> older, wide<T> newest, wide<T> epsilon, wide<T> momentum, wide<T> coupled,
                        wide<T> keep) {
    int i = row();
    if (i >= size) return;
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
__global__ void adam(int size, T* value, const T* gradient, T* first, T* second, T* largest, wide<T> rate,
                     wide<T> keep1, wide<T> new1, wide<T> keep2, wide<T> new2, wide<T> epsilon, wide<T> coupled,
                     wide<T> keep, wide<T> scale) {
    int i = row();
    if (i >= size) return;
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
    numbers = (learning_rate, momentum, lookahead, coupled, 1 - learning_rate * decoupled)
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
    numbers = (learning_rate, alpha, 1 - alpha, epsilon, momentum, coupled, 1 - learning_rate * decoupled)
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
    numbers = _adam_numbers(learning_rate, beta1, beta2, epsilon, coupled, decoupled, step)
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
    numbers = _adam_numbers(learning_rate, beta1, beta2, epsilon, coupled, decoupled, step)
    _sweep("adam", numbers, value, gradient, first, second, largest)
    return value, first, second, largest


def _adam_numbers(
    learning_rate: float, beta1: float, beta2: float, epsilon: float, coupled: float, decoupled: float, step: int
) -> tuple[float, ...]:
    rate, scale = learning_rate / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
    return rate, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, coupled, 1 - learning_rate * decoupled, scale


def _sweep(name: str, numbers: tuple[float, ...], value: Any, gradient: Any, *state: Any | None) -> None:
    """Run a kernel over all entries of arrays of one shape and dtype; it writes to all but the gradient."""
    for array in (gradient, *state):
        if array is not None and (array.shape != value.shape or array.dtype != value.dtype):
            raise ValueError(
                f"arrays must agree: value is {value.shape} {value.dtype}, another {array.shape} {array.dtype}"
            )
    for array in (value, *state):
        if array is not None and not array.flags.c_contiguous:
            raise ValueError("arrays that are overwritten must be C-contiguous")
    gradient = namespace(value, gradient).ascontiguousarray(gradient)
    numbers = tuple(float(number) for number in numbers)
    _cuda.launch(SOURCE, name, value.dtype, value.size, 1, value.size, value, gradient, *state, *numbers)
