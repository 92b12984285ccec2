"""The batches of CIFAR-10 and CIFAR-100: images, labels and class names, each checked for type, shape and range."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb.datasets.pickles import read_pickle

__all__ = ["parse_batch", "parse_names"]


def parse_batch(data: bytes, labels: tuple[str, int], others: tuple[tuple[str, int], ...] = ()) -> tuple:
    """Return the images and labels of one CIFAR batch.

    Parameters
    ----------
    data : bytes
        The whole (decompressed) file.
    labels : tuple of str and int
        Key of the labels wanted, and the number of classes.
    others : tuple of such pairs
        Further label lists that must be there and valid (CIFAR-100's coarse labels).

    Returns
    -------
    images : numpy.ndarray of uint8, shape (sample, 32, 32, 3)
    labels : numpy.ndarray of int64, shape (sample,)

    Raises
    ------
    ValueError
        If the file is not a CIFAR batch: refused by :func:`read_pickle`, or with other keys, shapes or labels.
    """
    content = read_pickle(data)
    expected = {b"data", b"filenames", b"batch_label", *(key.encode() for key, _ in (labels, *others))}
    if set(content) != expected:
        raise ValueError(f"batch has keys {_listed(content)}, expected {_listed(expected)}")
    images = content[b"data"]
    if not isinstance(images, np.ndarray) or images.shape[1] != 3072 or len(images) == 0:
        shape = getattr(images, "shape", type(images).__name__)
        raise ValueError(f"batch entry 'data' must have shape (sample, 3072), got {shape}")
    _list_of(content, "filenames", bytes, len(images))
    if type(content[b"batch_label"]) is not bytes:
        raise ValueError("batch entry 'batch_label' must be a string")
    found = [_labels(content, key, n_classes, len(images)) for key, n_classes in (labels, *others)]
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), found[0]


def _listed(keys: Any) -> str:
    return ", ".join(repr(key[:40]) for key in sorted(keys)[:10])


def _list_of(content: dict[bytes, Any], key: str, kind: type, length: int) -> list[Any]:
    values = content[key.encode()]
    if type(values) is not list or len(values) != length or not all(type(value) is kind for value in values):
        raise ValueError(f"batch entry {key!r} must be a list of {length} {kind.__name__} entries")
    return values


def _labels(content: dict[bytes, Any], key: str, n_classes: int, length: int) -> np.ndarray:
    values = _list_of(content, key, int, length)
    if not 0 <= min(values) <= max(values) < n_classes:
        raise ValueError(f"{key!r} must lie in 0 to {n_classes - 1}, got {min(values)} to {max(values)}")
    return np.array(values, dtype=np.int64)


def parse_names(data: bytes, key: str, n_classes: int) -> tuple[str, ...]:
    """Return the class names of a CIFAR "meta" file, one for each of the `n_classes` classes of entry `key`."""
    content = read_pickle(data)
    if key.encode() not in content:
        raise ValueError(f"meta file has keys {_listed(content)}, expected {key!r}")
    names = _list_of(content, key, bytes, n_classes)
    if not all(name.isascii() and name for name in names):
        raise ValueError(f"{key!r} must hold ASCII names")
    return tuple(name.decode() for name in names)
