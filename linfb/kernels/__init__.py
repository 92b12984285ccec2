"""Inner loops: a plain reference for each, and faster twins of the same names and signatures for each device."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["suited"]


def suited(topic: str, array: Any) -> ModuleType:
    """Return the kernels of a topic for the library and precision of an array.

    Parameters
    ----------
    topic : str
        Such as "images" or "optimisers".
    array : array
        NumPy arrays of single and double precision have compiled twins, CuPy arrays fused ones; all others take the
        reference.
    """
    kind = type(array).__module__.split(".")[0]
    if isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64):
        return import_module(f"linfb.kernels.cpu_{topic}")
    if kind == "cupy" and find_spec(f"linfb.kernels.gpu_{topic}") is not None:
        return import_module(f"linfb.kernels.gpu_{topic}")
    return import_module(f"linfb.kernels.reference_{topic}")
