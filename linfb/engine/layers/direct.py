"""The way of a direct rule: from one error of the network straight to the input of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from linfb._threads import columns, rows
from linfb.backend import reshape, transpose
from linfb.engine.layers.base import Kernel

__all__ = ["Direct"]


@dataclass(frozen=True)
class Direct(Kernel):
    r"""Carry an error to an input of another shape, :math:`\delta'_{\dots} = \sum_c Q_{c\dots} z_c`.

    Stands in the place of a kernel layer where an error is direct; nothing passes forward through it. Positions of the
    error (of a sequence of outputs) are those of the input; all other axes of the input are written to one by one.

    Kernels with a leading run axis make an ensemble of networks one call, as in a dense layer.

    Parameters
    ----------
    n_error : int
        Width of the error.
    shape : tuple of int
        Shape of one sample at the layer's input, without the positions that the error shares with it.
    """

    n_error: int
    shape: tuple[int, ...]

    ensemble: ClassVar[bool] = True

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of a full-rank kernel, ``(error, *shape)``."""
        return self.n_error, *self.shape

    def probes(self, xp: Any, dtype: Any) -> Any:
        """Return one unit input per entry."""
        return xp.reshape(xp.eye(math.prod(self.shape), dtype=dtype), (-1, *self.shape))

    def forward(self, kernel: Any, x: Any) -> tuple[Any, Any]:
        """Return what the kernel reads of the layer's input, shape (batch, ..., rank)."""
        return rows(self._flat(x), transpose(self._flat(kernel))), x

    def grad(self, kernel: Any, cache: Any, delta: Any) -> Any:
        """Return error times the layer's input, summed over batch and shared positions."""
        leading = kernel.ndim - 1 - len(self.shape)
        gradient = columns(delta, self._flat(cache), leading)
        return reshape(gradient, *gradient.shape[: leading + 1], *self.shape)

    def pull(self, kernel: Any, cache: Any, delta: Any) -> Any:
        """Return the error at the layer's input."""
        return reshape(rows(delta, self._flat(kernel)), *cache.shape)

    def _flat(self, x: Any) -> Any:
        return reshape(x, *x.shape[: x.ndim - len(self.shape)], math.prod(self.shape))
