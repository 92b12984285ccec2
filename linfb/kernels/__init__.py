"""Inner loops: a plain reference for each, and faster twins of the same names and signatures for each device."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["suited"]

_COMPILED = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


def suited(topic: str, array: Any, algorithm: str = "auto") -> ModuleType:
    """Return the kernels of a topic for the library and precision of an array.

    Parameters
    ----------
    topic : str
        Such as "images" or "optimisers".
    array : array
        NumPy arrays of single and double precision have compiled twins, CuPy arrays fused ones; all others take the
        reference.
    algorithm : str
        One of several ways of compiled kernels, such as "im2col"; "auto" lets the kernels choose. Others have one way.
    """
    if isinstance(array, np.ndarray) and array.dtype in _COMPILED:
        return _module("cpu", topic if algorithm == "auto" else algorithm)
    return _module("gpu" if type(array).__module__.startswith("cupy") else "reference", topic)


@cache
def _module(device: str, topic: str) -> ModuleType:
    name = f"linfb.kernels.{device}_{topic}"
    return import_module(name if find_spec(name) is not None else f"linfb.kernels.reference_{topic}")
