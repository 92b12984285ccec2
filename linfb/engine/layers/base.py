"""What a layer is: a few pure functions, most of which have a default."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import numpy as np

from linfb.backend import reshape, transpose

__all__ = ["Kernel", "Layer"]


class Layer(Protocol):
    """A step of a network. Arrays have the batch first and features last: (batch, ..., feature).

    A layer that needs random numbers in training sets ``noisy = True``, takes a :class:`~linfb.backend.Key` as third
    argument of :meth:`forward`, and has ``evaluate(weights, buffers, x)``; one that keeps running averages has
    ``initial_buffers()``, ``update_buffers(buffers, cache)`` and ``evaluate``. One whose functions also take arrays
    with a leading run axis, weights included, sets ``ensemble = True``; of the others every run of an ensemble is done
    by itself (:mod:`linfb.engine.layers.runs`).
    """

    ensemble: ClassVar[bool] = False

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a sample's output from that of its input, without the batch; the same by default.

        Raises
        ------
        ValueError
            If the layer cannot take that shape.
        """
        return shape

    def initial_weights(self, rng: np.random.Generator) -> Any:
        """Return the weights at the start, on the host in float64: an array, a dict of arrays, or None (default)."""
        return None

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, and what the way back needs."""
        ...

    def grad(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the gradient of the weights, summed over batch and positions; None by default."""
        return None

    def pull(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the error at the input from that at the output: the adjoint of the Jacobian."""
        ...

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return what :meth:`grad` and :meth:`pull` return, for layers that do both in one pass over memory."""
        return self.grad(weights, cache, delta), self.pull(weights, cache, delta)


class Kernel(Layer, Protocol):
    """A layer that is linear in one array, its kernel, through which a learning rule carries errors.

    A kernel has its output features on the first axis and its input features on the last. All functions work for any
    kernel shaped like the weights, with any number of output features, and the cache of :meth:`forward` is its input.
    """

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (out, ..., in)."""
        ...

    def probes(self, xp: Any, dtype: Any) -> Any:
        r"""Return inputs :math:`e_i` with :math:`\sum_i` ``grad(K, e_i, forward(K, e_i)) == K`` for every kernel K."""
        ...

    def initial_weights(self, rng: np.random.Generator) -> np.ndarray:
        r"""Draw a kernel from :math:`U(\pm 1/\sqrt{\text{fan in}})`: Kaiming-uniform with :math:`a = \sqrt5`."""
        bound = 1 / math.sqrt(math.prod(self.kernel_shape[1:]))
        return rng.uniform(-bound, bound, self.kernel_shape)

    def compose(self, P: Any, kernel: Any) -> Any:
        """Return the kernel of this layer followed by a map P (rank, out) of its output features."""
        return reshape(P @ reshape(kernel, kernel.shape[0], -1), P.shape[0], *kernel.shape[1:])

    def contract(self, Q: Any, kernel: Any) -> Any:
        """Return the inner products of all output features of two kernels, shape (rank, out)."""
        return reshape(Q, Q.shape[0], -1) @ transpose(reshape(kernel, kernel.shape[0], -1))
