"""Products in low precision under weights, errors and results in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from linfb._checks import choice
from linfb.backend import device_namespace, namespace

__all__ = ["Cast", "cast", "tensor_float32"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
LARGEST = 15  # 2^15 is the largest power of two that half precision holds


@dataclass(frozen=True)
class Cast:
    r"""A layer that computes in another precision than the rest of the network.

    Weights, input and error are rounded to `dtype` on their way into the layer; results take the precision of the
    weights (of the error, for the error that is handed down) again. So the weights that learn stay in full precision,
    and what the layer keeps for the way back is small. Everything else is the layer's own.

    Half precision has a narrow range, and errors are small. There the error enters multiplied by

    .. math:: 2^k = \min\big(\tfrac12,\ 2^{13} / (n\,\bar a)\big) / \bar\delta,

    which is taken out of the result again: :math:`\bar\delta` and :math:`\bar a` are the powers of two just below the
    largest entries of the error and of what it is multiplied with, and n is the number of terms of a sum, rounded up to
    a power of two. No sum can overflow, powers of two change no bits, and there is nothing to tune. (Of a layer
    without a kernel the second factor is not known; there :math:`2^k = 1 / 32\bar\delta`.)

    Parameters
    ----------
    layer : layer
    dtype : {"float16", "bfloat16", "float32", "float64"}
        "bfloat16" needs the package ml_dtypes, and on a GPU CuPy 14.

    Notes
    -----
    Inputs and weights are not scaled: those beyond 65504 become infinite in half precision.

    References
    ----------
    :cite:t:`micikevicius2018`.

    Examples
    --------
    >>> import numpy as np
    >>> from linfb.engine.layers import Dense
    >>> layer, W, x = Cast(Dense(1, 1), "float16"), np.full((1, 1), 0.1), np.ones((1, 1))
    >>> y, cache = layer.forward(W, x)
    >>> print(y.dtype, cache.dtype, y[0, 0], layer.pull(W, cache, 1e-9 * x)[0, 0])
    float64 float16 0.0999755859375 1.000...e-10
    """

    layer: Any
    dtype: str
    ensemble: ClassVar[bool] = False

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)

    def __getattr__(self, name: str) -> Any:
        if name == "layer" or name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.layer, name)
        return self._evaluation(value) if name == "evaluate" else value

    def forward(self, weights: Any, x: Any, *key: Any) -> tuple[Any, Any]:
        """Return the output in full precision and the layer's cache in `dtype`."""
        y, cache = self.layer.forward(self._low(weights), self._low(x), *key)
        return _rounded(y, _dtype_of(weights, x)), cache

    def grad(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the gradient of the weights, in their precision."""
        if weights is None:
            return self.layer.grad(None, cache, delta)
        other = cache if self._is_kernel else None
        small, factor = self._scaled(delta, other, math.prod(delta.shape[:-1]))
        return _restored(self.layer.grad(self._low(weights), cache, small), factor, _dtype_of(weights, delta))

    def pull(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the error at the input, in the precision of the error at the output."""
        other, terms = (weights, math.prod(weights.shape[:-1])) if self._is_kernel else (None, 1)
        small, factor = self._scaled(delta, other, terms)
        return _restored(self.layer.pull(self._low(weights), cache, small), factor, delta.dtype)

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the weights and the error at the input."""
        return self.grad(weights, cache, delta), self.pull(weights, cache, delta)

    def compose(self, P: Any, kernel: Any) -> Any:
        """Return the kernel with its output features mapped by P, in full precision."""
        return self.layer.compose(P, kernel)

    def contract(self, Q: Any, kernel: Any) -> Any:
        """Return the inner products of the output features of two kernels, in full precision."""
        return self.layer.contract(Q, kernel)

    def probes(self, xp: Any, dtype: Any) -> Any:
        """Return a complete set of unit inputs."""
        return self.layer.probes(xp, dtype)

    def _evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def low(weights: Any, buffers: Any, x: Any) -> Any:
            return _rounded(evaluate(self._low(weights), self._low(buffers), self._low(x)), x.dtype)

        return low

    @property
    def _is_kernel(self) -> bool:
        return hasattr(self.layer, "kernel_shape")

    def _low(self, arrays: Any) -> Any:
        return _rounded(arrays, self.dtype)

    def _scaled(self, delta: Any, other: Any, terms: int) -> tuple[Any, Any]:
        """Return the error in low precision times a power of two, and that power (None for 1)."""
        if self.dtype != "float16" or math.prod(delta.shape) == 0:
            return self._low(delta), None
        xp, room = namespace(delta), 2.0 ** (LARGEST - 2 - math.ceil(math.log2(terms)))
        one = xp.asarray(0.5 if self._is_kernel else 1 / 32, dtype=delta.dtype)
        if _is_real(other):
            one = xp.minimum(one, room / _power_below(xp.astype(_largest(other), delta.dtype)))
        elif self._is_kernel:  # of tokens, which count as ones
            one = xp.minimum(one, xp.asarray(room, dtype=delta.dtype))
        factor = one / _power_below(_largest(delta))
        return self._low(delta * factor), factor


def cast(layers: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Return layers of which those made of matrix products compute in another precision, see :class:`Cast`.

    Parameters
    ----------
    layers : tuple of layers
    dtype : {"float16", "bfloat16", "float32", "float64"}

    Returns
    -------
    tuple of layers
        Kernel layers, and layers that say ``products = True``, are wrapped; normalisation, activations and sums keep
        full precision.
    """
    choice("dtype", dtype, DTYPES)
    return tuple(
        Cast(layer, dtype) if hasattr(layer, "kernel_shape") or getattr(layer, "products", False) else layer
        for layer in layers
    )


@contextmanager
def tensor_float32(device: str | ModuleType) -> Iterator[None]:
    """Let matrix products of single precision round their factors to TensorFloat-32 for the duration of a block.

    On a GPU of compute capability 8.0 or more products then run on the tensor cores: factors have 11 significant bits
    (as in half precision, with the range of single precision), sums are in single precision. It holds for products of
    this thread on the device in use. On the CPU, and for other precisions, nothing changes.

    Parameters
    ----------
    device : {"cpu", "gpu"} or array-API module
    """
    if "cupy" not in device_namespace(device).__name__:
        yield
        return
    cupy, cublas = import_module("cupy"), import_module("cupy_backends.cuda.libs.cublas")
    handle = cupy.cuda.device.get_cublas_handle()
    before = cublas.getMathMode(handle)
    cublas.setMathMode(handle, cublas.CUBLAS_TF32_TENSOR_OP_MATH)
    try:
        yield
    finally:
        cublas.setMathMode(handle, before)


def _largest(array: Any) -> Any:
    xp = namespace(array)
    return xp.maximum(xp.max(array), -xp.min(array))


def _power_below(value: Any) -> Any:
    """Return the largest power of two that is not above a positive number; exact, by two roundings."""
    xp = namespace(value)
    info = xp.finfo(value.dtype)
    value = xp.maximum(value, xp.asarray(2.0**-100, dtype=value.dtype))  # and its reciprocal is finite
    raised = value * (1 / info.eps + 1)
    return xp.abs(raised - raised * (1 - info.eps / 2))


def _restored(arrays: Any, factor: Any, dtype: Any) -> Any:
    """Return results in full precision, with a factor of the error taken out."""
    return _map(lambda array: array if factor is None else array / factor, _rounded(arrays, dtype))


def _dtype_of(weights: Any, otherwise: Any) -> Any:
    return weights.dtype if hasattr(weights, "dtype") else otherwise.dtype


def _map(function: Callable[[Any], Any], arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return {name: _map(function, array) for name, array in arrays.items()}
    return None if arrays is None else function(arrays)


def _rounded(arrays: Any, dtype: Any) -> Any:
    """Return an array, or a dict of arrays, in another precision if they hold real numbers."""
    return _map(lambda array: _astype(array, dtype), arrays)


def _astype(array: Any, dtype: Any) -> Any:
    xp = namespace(array)
    target = _named(xp, dtype) if isinstance(dtype, str) else dtype
    if array.dtype == target or not _is_real(array):
        return array
    try:
        return xp.astype(array, target)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{xp.__name__} cannot convert arrays of dtype {array.dtype} to {target}: {error}") from error


def _is_real(array: Any) -> bool:
    """Return whether this is an array of real numbers; bfloat16 is unknown to what the standard offers for this."""
    return array is not None and "float" in str(array.dtype)


def _named(xp: Any, name: str) -> Any:
    if name == "bfloat16":
        try:
            return np.dtype(import_module("ml_dtypes").bfloat16)
        except ImportError as error:
            raise ImportError("dtype='bfloat16' needs the package ml_dtypes") from error
    if not hasattr(xp, name):
        raise TypeError(f"{xp.__name__} has no arrays of dtype {name}")
    return getattr(xp, name)
