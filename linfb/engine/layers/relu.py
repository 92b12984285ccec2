"""The rectifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from linfb.backend import namespace

__all__ = ["ReLU"]


@dataclass(frozen=True)
class ReLU:
    r"""Rectify, :math:`y = \max(x, 0)`; its derivative at 0 is taken as 0. Nothing is learned.

    Examples
    --------
    >>> layer = ReLU()
    >>> y, cache = layer.forward(None, np.array([[-1.0, 2.0]]))
    >>> y, layer.pull(None, cache, np.array([[5.0, 5.0]]))
    (array([[0., 2.]]), array([[0., 5.]]))
    """

    def initial_weights(self) -> None:
        """Return None: there are no weights."""

    def forward(
        self, weights: None, x: Float[Any, "*batch features"]
    ) -> tuple[Float[Any, "*batch features"], Bool[Any, "*batch features"]]:
        """Return the output and where it is positive."""
        positive = x > 0
        if isinstance(x, np.ndarray):
            return np.maximum(x, 0), positive
        return namespace(x).where(positive, x, namespace(x).zeros_like(x)), positive

    def grad(self, weights: None, cache: Bool[Any, "*batch features"], delta: Float[Any, "*batch features"]) -> None:
        """Return None: there are no weights."""

    def pull(
        self, weights: None, cache: Bool[Any, "*batch features"], delta: Float[Any, "*batch features"]
    ) -> Float[Any, "*batch features"]:
        """Return the error where the output was positive, 0 elsewhere."""
        xp = namespace(delta)
        return delta * xp.astype(cache, delta.dtype)
