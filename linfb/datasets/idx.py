"""The IDX format of MNIST: a big-endian header (type, axes, sizes), then unsigned bytes."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["parse_idx"]

_UNSIGNED_BYTE = 0x08


def parse_idx(data: bytes, n_axes: int) -> np.ndarray:
    """Return the array of unsigned bytes that an IDX file holds, refusing any byte that does not fit.

    Parameters
    ----------
    data : bytes
        The whole (decompressed) file.
    n_axes : int
        Number of axes expected: 1 for labels, 3 for images.

    Returns
    -------
    numpy.ndarray of uint8, with `n_axes` axes
        A read-only view of `data`.

    Raises
    ------
    ValueError
        If the magic number, the header or the number of bytes is not what it must be.

    Notes
    -----
    The format is described by :cite:t:`lecun1998`'s distribution: two zero bytes, the element type (8 for
    unsigned bytes, the only one MNIST uses), the number of axes, one big-endian 32-bit size per axis, the elements
    in C order. Checked by ``tests/test_datasets.py`` against the real files and against mutated ones.

    Examples
    --------
    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), 1)
    array([7, 8, 9], dtype=uint8)
    """
    magic = bytes([0, 0, _UNSIGNED_BYTE, n_axes])
    if data[:4] != magic:
        raise ValueError(
            f"not an IDX file of unsigned bytes with {n_axes} axes: magic {data[:4]!r}, expected {magic!r}"
        )
    start = 4 + 4 * n_axes
    if len(data) < start:
        raise ValueError(f"IDX header is cut short: {len(data)} bytes, expected at least {start}")
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"IDX file of shape {shape} must have {expected} bytes, got {len(data)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
