"""Activation functions, written plainly in the array-API standard. The oracles.

Every function has a twin of the same name and signature in :mod:`linfb.kernels.cpu_activations`.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from linfb.backend import namespace, to_numpy

__all__ = ["erf", "gelu", "product", "relu", "relu_pull"]


def product(left: Any, right: Any) -> Any:
    """Return the products of the entries of two arrays of one shape."""
    return left * right


def relu(x: Any) -> tuple[Any, Any]:
    """Return the rectified entries, and where they are positive; NaN stays what it is."""
    xp = namespace(x)
    return xp.where(x <= 0, xp.zeros_like(x), x), x > 0


def relu_pull(delta: Any, positive: Any) -> Any:
    """Return the error where the output was positive, 0 elsewhere."""
    xp = namespace(delta)
    return xp.where(positive, delta, xp.zeros_like(delta))


def erf(x: Any) -> Any:
    """Return the error function of every entry; the standard has none, so that SciPy or CuPy gives it."""
    if hasattr(x, "get"):  # CuPy
        return import_module("cupyx.scipy.special").erf(x)
    return namespace(x).asarray(import_module("scipy.special").erf(to_numpy(x)), dtype=x.dtype)


def gelu(x: Any) -> tuple[Any, Any]:
    r"""Return :math:`x\,\Phi(x)` and its derivative :math:`\Phi(x) + x\,\phi(x)`, with the normal law's two functions.

    Parameters
    ----------
    x : array

    Returns
    -------
    y, slope : array
        Of the shape of x.
    """
    below = 0.5 + 0.5 * erf(x * math.sqrt(0.5))
    density = namespace(x).exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * below, below + x * density
