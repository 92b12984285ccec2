"""The dense layer; it also is the layer of the linear theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float

from linfb._threads import columns, rows
from linfb.backend import transpose
from linfb.engine.layers.base import Kernel

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Kernel):
    r"""Fully connected layer without bias, :math:`y = x W^\top`, on the last axis of its input.

    Kernels with a leading run axis make an ensemble of networks one call; then all arrays have that axis first.

    Parameters
    ----------
    n_in, n_out : int
        Widths; the kernel has shape (out, in).
    blocks : int
        Number of equal parts that the outputs consist of, such as 3 for queries, keys and values; a plain rank of a
        channel counts for each.

    Examples
    --------
    >>> import numpy as np
    >>> layer, W, x = Dense(2, 1), np.array([[2.0, 3.0]]), np.array([[1.0, 1.0]])
    >>> y, cache = layer.forward(W, x)
    >>> y, layer.pull(W, cache, np.ones((1, 1))), layer.grad(W, cache, np.ones((1, 1)))
    (array([[5.]]), array([[2., 3.]]), array([[1., 1.]]))
    """

    n_in: int
    n_out: int
    blocks: int = 1

    ensemble: ClassVar[bool] = True

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (out, in)."""
        return self.n_out, self.n_in

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the last axis changed."""
        if not shape or shape[-1] != self.n_in:
            raise ValueError(f"{self} takes {self.n_in} features on the last axis, got shape {shape}")
        return *shape[:-1], self.n_out

    def probes(self, xp: Any, dtype: Any) -> Float[Any, "in in"]:
        """Return one unit input per feature."""
        return xp.eye(self.n_in, dtype=dtype)

    def forward(
        self, kernel: Float[Any, "*run out in"], x: Float[Any, "*batch in"]
    ) -> tuple[Float[Any, "*rows out"], Float[Any, "*batch in"]]:
        """Return the output and what :meth:`grad` needs later (the input)."""
        return rows(x, transpose(kernel)), x

    def grad(
        self, kernel: Float[Any, "*run out in"], cache: Float[Any, "*batch in"], delta: Float[Any, "*rows out"]
    ) -> Float[Any, "*any out in"]:
        """Return the gradient of a kernel, summed over all rows: error times input, the same under every rule."""
        return columns(delta, cache, kernel.ndim - 2)

    def pull(
        self, kernel: Float[Any, "*run out in"], cache: Any, delta: Float[Any, "*rows out"]
    ) -> Float[Any, "*any in"]:
        """Return the error at the layer's input: the adjoint of :meth:`forward`, for any kernel."""
        return rows(delta, kernel)

    def compose(self, P: Float[Any, "*run rank out"], kernel: Float[Any, "*run out in"]) -> Float[Any, "*run rank in"]:
        """Return the kernel of this layer followed by a map P of its output features."""
        return columns(transpose(P), kernel, kernel.ndim - 2)

    def contract(self, Q: Float[Any, "*run rank in"], kernel: Float[Any, "*run out in"]) -> Float[Any, "*run rank out"]:
        """Return the inner products of all output features of two kernels."""
        return Q @ transpose(kernel)
