"""Validation of what users hand in: every message names the argument, what came and what was expected."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np


def real_array(
    name: str, value: Any, shape: tuple[int | str | None, ...] | None = None, *, dtype: Any = np.float64
) -> np.ndarray:
    """Return `value` as a finite real NumPy array of the given shape, or say what is wrong with it.

    Parameters
    ----------
    name : str
        The argument's name, used in messages.
    value : array_like
        What the caller passed.
    shape : tuple, optional
        Expected shape; an integer is an exact size, a string or None any size (the string is used in the message).
    dtype : dtype
        Type of the result.

    Raises
    ------
    TypeError
        If `value` is not made of real numbers.
    ValueError
        If its shape is wrong or an entry is NaN or infinite.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    array = array.astype(dtype, copy=False)
    if shape is not None:
        matches = array.ndim == len(shape) and all(
            not isinstance(want, int) or have == want for have, want in zip(array.shape, shape, strict=True)
        )
        if not matches:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            wanted += "," if len(shape) == 1 else ""
            raise ValueError(f"{name} has shape {array.shape}, expected ({wanted})")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} (shape {array.shape}) contains NaN or infinite values; it must be finite")
    return array


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as a finite float within the given bounds, or raise an error that names the argument."""
    scalar_array = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiu"
    if isinstance(value, bool) or not (scalar_array or isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be finite, got a number beyond the range of floats") from error
    bounds = [
        (f"> {above}", above is None or number > above),
        (f">= {at_least}", at_least is None or number >= at_least),
        (f"< {below}", below is None or number < below),
        (f"<= {at_most}", at_most is None or number <= at_most),
    ]
    failed = [text for text, holds in bounds if not holds]
    if failed or not math.isfinite(number):
        raise ValueError(f"{name} must be finite{''.join(' and ' + text for text in failed)}, got {value!r}")
    return number


def integer(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return `value` as an int within the given bounds, or raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be >= {at_least}, got {number}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name} must be <= {at_most}, got {number}")
    return number


def times_array(name: str, value: Any) -> np.ndarray:
    """Return `value` as a 1-D float array of finite, non-negative, increasing times (in units of tau)."""
    times = real_array(name, value)
    if np.asarray(value).dtype.kind == "b":
        raise TypeError(f"{name} must be an array of times, got booleans")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"{name} has shape {times.shape}, expected (time,) with at least one entry")
    if times[0] < 0:
        raise ValueError(f"{name} must be non-negative, got {times[0]}")
    if np.any(np.diff(times) <= 0):
        raise ValueError(f"{name} must increase strictly")
    return times


def generator(name: str, value: Any) -> np.random.Generator:
    """Return `value` if it is a NumPy random generator, or raise a TypeError that names the argument."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(f"{name} must be a numpy.random.Generator, got {value!r}")
    return value


def path(name: str, value: Any) -> Path:
    """Return `value` as a path, or raise a TypeError that names the argument."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {value!r}")
    return Path(value)


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` if it is one of `allowed`, or raise a ValueError that lists them."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def covariance(name: str, value: Any, size: int) -> np.ndarray:
    """Return `value` as a symmetric positive semi-definite (size, size) array, or say how it fails to be one."""
    matrix = real_array(name, value, (size, size))
    scale = max(float(np.abs(matrix).max(initial=0.0)), np.finfo(float).tiny)
    if scale > 1e150:
        raise ValueError(f"{name} has entries up to {scale:.3g}, whose squares are beyond the range of floats")
    asymmetry = float(np.abs(matrix - matrix.T).max(initial=0.0))
    if asymmetry > 1e-10 * scale:
        raise ValueError(f"{name} must be symmetric; largest |C - C.T| is {asymmetry:.3g}")
    smallest = float(np.linalg.eigvalsh(matrix).min(initial=0.0))
    if smallest < -1e-10 * scale * size:
        raise ValueError(f"{name} must be positive semi-definite; its smallest eigenvalue is {smallest:.3g}")
    return (matrix + matrix.T) / 2
