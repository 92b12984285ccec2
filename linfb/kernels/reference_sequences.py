"""Attention and sums over tokens, written plainly in the array-API standard. The oracles.

Every function has a twin of the same name and signature in :mod:`linfb.kernels.cpu_sequences`.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace, transpose

__all__ = ["attention", "attention_pull", "token_sums"]


def attention(x: Any, heads: int, causal: bool) -> tuple[Any, Any]:
    r"""Mix the values of all tokens by how well their keys fit a query.

    .. math:: A = \mathrm{softmax}\big(q k^\top / \sqrt d\big),\qquad y = A\,v

    Parameters
    ----------
    x : array, shape (batch, token, 3 features)
        Queries, keys and values next to each other, each of them `heads` parts of d features.
    heads : int
    causal : bool
        Whether a token attends to itself and those before it only.

    Returns
    -------
    y : array, shape (batch, token, features)
    probabilities : array, shape (batch, heads, token, token)
        A, from queries (rows) to keys; exactly 0 where masked.
    """
    xp = namespace(x)
    q, k, v = (_split(x, part, 3, heads) for part in range(3))
    scores = (q @ transpose(k)) * (1 / math.sqrt(q.shape[-1]))
    if causal:
        seen = xp.tril(xp.ones(scores.shape[-2:], dtype=xp.bool))
        scores = xp.where(seen, scores, xp.asarray(-math.inf, dtype=scores.dtype))
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    probabilities = weights / xp.sum(weights, axis=-1, keepdims=True)
    return _merge(probabilities @ v), probabilities


def attention_pull(delta: Any, x: Any, probabilities: Any) -> Any:
    r"""Return the error at the input of :func:`attention`.

    .. math:: B = A \circ \big(\delta v^\top - \mathrm{rowsum}(A \circ \delta v^\top)\big) / \sqrt d,\qquad
              \delta_q = B\,k,\quad \delta_k = B^\top q,\quad \delta_v = A^\top \delta

    Parameters
    ----------
    delta : array, shape (batch, token, features)
    x, probabilities : array
        The input and the second output of :func:`attention`.

    Returns
    -------
    array, shape (batch, token, 3 features)
    """
    xp, heads = namespace(delta), probabilities.shape[1]
    q, k, v = (_split(x, part, 3, heads) for part in range(3))
    delta = _split(delta, 0, 1, heads)
    change = probabilities * (delta @ transpose(v))
    change = change - probabilities * xp.sum(change, axis=-1, keepdims=True)
    change = change * (1 / math.sqrt(q.shape[-1]))
    errors = (change @ k, transpose(change) @ q, transpose(probabilities) @ delta)
    return xp.concat([_merge(error) for error in errors], axis=-1)


def token_sums(delta: Any, tokens: Any, n_tokens: int) -> Any:
    """Return the sum of the errors of each token, shape (features, n_tokens).

    Parameters
    ----------
    delta : array, shape (batch, token, features)
    tokens : array of integers, shape (batch, token)
    n_tokens : int
        Number of different tokens.
    """
    xp = namespace(delta)
    hot = xp.reshape(tokens, (-1, 1)) == xp.arange(n_tokens, dtype=tokens.dtype)
    return transpose(xp.reshape(delta, (-1, delta.shape[-1]))) @ xp.astype(hot, delta.dtype)


def _split(x: Any, part: int, parts: int, heads: int) -> Any:
    """Return one of the equal parts of the features, (batch, heads, token, features of a head)."""
    batch, tokens, features = x.shape
    width = features // parts
    piece = x[:, :, part * width : (part + 1) * width]
    xp = namespace(x)
    return xp.permute_dims(xp.reshape(piece, (batch, tokens, heads, width // heads)), (0, 2, 1, 3))


def _merge(x: Any) -> Any:
    """Return the heads next to each other, (batch, token, features)."""
    batch, heads, tokens, width = x.shape
    return namespace(x).reshape(namespace(x).permute_dims(x, (0, 2, 1, 3)), (batch, tokens, heads * width))
