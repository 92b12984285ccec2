"""What layers say of shapes that do not fit."""

from __future__ import annotations

from typing import Any

from linfb.backend import reshape

__all__ = ["last_axis", "per_run", "tokens"]


def last_axis(layer: Any, shape: tuple[int, ...], n_features: int) -> tuple[int, ...]:
    """Return the shape, if its last axis has so many features.

    Raises
    ------
    ValueError
        If it has not.
    """
    if not shape or shape[-1] != n_features:
        raise ValueError(f"{layer} takes {n_features} features on the last axis, got shape {shape}")
    return shape


def per_run(weights: Any, x: Any) -> Any:
    """Return weights (features,) as they are; those of an ensemble, (run, features), so that each meets its rows."""
    if weights.ndim == 1:
        return weights
    return reshape(weights, weights.shape[0], *(1,) * (x.ndim - 2), weights.shape[1])


def tokens(layer: Any, shape: tuple[int, ...], n_tokens: int | None = None, n_features: int | None = None) -> int:
    """Return the number of tokens of a shape (token, feature), if there are that many of either (None is any).

    Raises
    ------
    ValueError
        If the shape is another.
    """
    wanted = (n_tokens, n_features)
    if len(shape) != 2 or any(want not in (None, have) for want, have in zip(wanted, shape, strict=True)):
        names = (name if want is None else str(want) for name, want in zip(("token", "feature"), wanted, strict=True))
        raise ValueError(f"{layer} takes samples of shape ({', '.join(names)}), got shape {shape}")
    return shape[0]
