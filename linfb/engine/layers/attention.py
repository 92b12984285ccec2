"""Self-attention, the part without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float

from linfb._checks import integer
from linfb.engine.layers.base import Layer
from linfb.engine.layers.shapes import tokens
from linfb.kernels import suited

__all__ = ["Attention", "AttentionCache"]


class AttentionCache(NamedTuple):
    """What the forward pass keeps.

    Attributes
    ----------
    x : array, shape (batch, token, 3 features)
        The input.
    probabilities : array, shape (batch, heads, token, token)
        How much each token (rows) takes of each (columns).
    """

    x: Any
    probabilities: Any


@dataclass(frozen=True)
class Attention(Layer):
    r"""Every token takes a mean of the values of all tokens, weighted by how well their keys fit its query.

    .. math:: A = \mathrm{softmax}\big(q k^\top / \sqrt{d}\big),\qquad y = A\,v

    for each head, whose queries, keys and values have d features. Nothing is learned here: q, k and v lie next to each
    other on the last axis of the input, in this order and each with its heads next to each other, as a kernel layer of
    three times as many outputs gives them.

    Parameters
    ----------
    n_features : int
        Width of the output, and of the queries, keys and values each.
    heads : int
        Divides `n_features`.
    causal : bool
        Whether a token takes of itself and of those before it only, as in a model that predicts the next token.

    Raises
    ------
    ValueError
        If `heads` does not divide `n_features`.

    Notes
    -----
    The error is pulled back through the softmax and the products with the q, k and v of the forward pass (the true
    Jacobian). Checked against PyTorch and against plain loops in ``tests/test_layers_tokens_oracle.py`` and
    ``tests/test_layers_tokens.py``.

    References
    ----------
    :cite:t:`vaswani2017`.

    Examples
    --------
    Without queries, every token takes the mean:

    >>> import numpy as np
    >>> x = np.array([[[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]]])
    >>> Attention(1, 1).forward(None, x)[0].ravel(), Attention(1, 1, causal=True).forward(None, x)[0].ravel()
    (array([2., 2.]), array([1., 2.]))
    """

    n_features: int
    heads: int
    causal: bool = False
    products: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)
        if self.n_features % integer("heads", self.heads, at_least=1):
            raise ValueError(f"heads must divide n_features, got heads {self.heads} and n_features {self.n_features}")
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal must be True or False, got {self.causal!r}")

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (token, features) for (token, 3 features)."""
        return tokens(self, shape, n_features=3 * self.n_features), self.n_features

    def forward(
        self, weights: None, x: Float[Any, "batch token three_features"]
    ) -> tuple[Float[Any, "batch token features"], AttentionCache]:
        """Return the output, and what the way back needs."""
        y, probabilities = suited("sequences", x).attention(x, self.heads, self.causal)
        return y, AttentionCache(x, probabilities)

    def pull(
        self, weights: None, cache: AttentionCache, delta: Float[Any, "batch token features"]
    ) -> Float[Any, "batch token three_features"]:
        """Return the error at queries, keys and values."""
        return suited("sequences", delta).attention_pull(delta, *cache)
