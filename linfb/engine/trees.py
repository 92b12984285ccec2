"""Nested tuples and mappings of arrays as one flat mapping from paths, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["flatten", "merged", "rebuild"]


def _items(tree: Any) -> Iterable[tuple[str, Any]] | None:
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", None)
        return zip(map(str, range(len(tree))) if names is None else names, tree, strict=True)
    return tree.items() if isinstance(tree, Mapping) else None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the arrays of a tree by path; None and plain numbers are not arrays.

    Examples
    --------
    >>> import numpy as np
    >>> sorted(flatten({"weights": (np.ones(1), {"gain": np.ones(2)}, None)}))
    ['weights/0', 'weights/1/gain']
    """
    flat: dict[str, Any] = {}
    _collect(tree, prefix, flat)
    return flat


def _collect(tree: Any, prefix: str, flat: dict[str, Any]) -> None:
    if tree is None or isinstance(tree, float | int):
        return
    entries = _items(tree)
    if entries is None:
        flat[prefix] = tree
        return
    for key, entry in entries:
        _collect(entry, f"{prefix}/{key}" if prefix else key, flat)


def rebuild(tree: Any, arrays: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a tree of the same structure with the arrays of `arrays`, the inverse of :func:`flatten`."""
    entries = _items(tree)
    if entries is None:
        return tree if tree is None or isinstance(tree, float | int) else arrays[prefix]
    rebuilt = {key: rebuild(entry, arrays, f"{prefix}/{key}" if prefix else key) for key, entry in entries}
    if hasattr(tree, "_replace"):
        return tree._replace(**rebuilt)
    return tuple(rebuilt.values()) if isinstance(tree, tuple) else rebuilt


def merged(function: Callable[[str, Any, Any], Any], tree: Any, other: Any, prefix: str = "") -> Any:
    """Return a tree with ``function(path, array, its other)`` for every array that has one in a tree like it.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones(1)
    >>> merged(lambda path, a, b: (path, a + b), (one, {"gain": one}), (None, {"gain": one}), "weights")
    (array([1.]), {'gain': ('weights/1/gain', array([2.]))})
    """
    if other is None or isinstance(other, float | int):
        return tree
    if isinstance(other, tuple):
        names = getattr(other, "_fields", range(len(other)))
        parts = [merged(function, a, b, f"{prefix}/{key}") for key, a, b in zip(names, tree, other, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(other, Mapping):
        return {key: merged(function, tree[key], other[key], f"{prefix}/{key}") for key in tree}
    return function(prefix, tree, other)
