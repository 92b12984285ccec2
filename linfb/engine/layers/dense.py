"""The dense layer; it also is the layer of the linear theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from linfb.backend import transpose

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense:
    r"""Fully connected layer without bias, :math:`y = x W^\top` for samples in rows.

    Every function broadcasts over leading axes of its arguments, so that an ensemble of networks (a leading run
    axis) is one call.

    Parameters
    ----------
    n_in, n_out : int
        Widths; the kernel has shape (out, in).

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

    def forward(
        self, kernel: Float[Any, "*run out in"], x: Float[Any, "*batch in"]
    ) -> tuple[Float[Any, "*rows out"], Float[Any, "*batch in"]]:
        """Return the output and what :meth:`grad` needs later (the input)."""
        return x @ transpose(kernel), x

    def grad(
        self, kernel: Float[Any, "*run out in"], cache: Float[Any, "*batch in"], delta: Float[Any, "*rows out"]
    ) -> Float[Any, "*any out in"]:
        """Return the gradient of a kernel, summed over the batch: error times input, the same under every rule."""
        return transpose(delta) @ cache

    def pull(
        self, kernel: Float[Any, "*run out in"], cache: Any, delta: Float[Any, "*rows out"]
    ) -> Float[Any, "*any in"]:
        """Return the error at the layer's input: the adjoint of :meth:`forward`, for any kernel."""
        return delta @ kernel

    def compose(self, P: Float[Any, "*run rank out"], kernel: Float[Any, "*run out in"]) -> Float[Any, "*run rank in"]:
        """Return the kernel of this layer followed by a map P of its output features."""
        return P @ kernel

    def contract(self, Q: Float[Any, "*run rank in"], kernel: Float[Any, "*run out in"]) -> Float[Any, "*run rank out"]:
        """Return the inner products of all output features of two kernels."""
        return Q @ transpose(kernel)
