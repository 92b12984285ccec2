"""Nested tuples and mappings of arrays as one flat mapping from paths, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flatten", "rebuild"]


def _items(tree: Any) -> Iterator[tuple[str, Any]] | None:
    if isinstance(tree, Mapping):
        return iter(tree.items())
    if hasattr(tree, "_asdict"):
        return iter(tree._asdict().items())
    if isinstance(tree, tuple):
        return ((str(i), entry) for i, entry in enumerate(tree))
    return None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the arrays of a tree by path; None and plain numbers are not arrays.

    Examples
    --------
    >>> import numpy as np
    >>> sorted(flatten({"weights": (np.ones(1), {"gain": np.ones(2)}, None)}))
    ['weights/0', 'weights/1/gain']
    """
    entries = _items(tree)
    if entries is None:
        return {} if tree is None or isinstance(tree, float | int) else {prefix: tree}
    flat: dict[str, Any] = {}
    for key, entry in entries:
        flat |= flatten(entry, f"{prefix}/{key}" if prefix else key)
    return flat


def rebuild(tree: Any, arrays: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a tree of the same structure with the arrays of `arrays`, the inverse of :func:`flatten`."""
    entries = _items(tree)
    if entries is None:
        return tree if tree is None or isinstance(tree, float | int) else arrays[prefix]
    rebuilt = {key: rebuild(entry, arrays, f"{prefix}/{key}" if prefix else key) for key, entry in entries}
    if hasattr(tree, "_replace"):
        return tree._replace(**rebuilt)
    return tuple(rebuilt.values()) if isinstance(tree, tuple) else rebuilt
