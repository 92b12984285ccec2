"""Counter-based uniform numbers in the array-API standard: number i is a function of a state and of i alone."""

from __future__ import annotations

import math
from typing import Any

from linfb._checks import integer
from linfb.backend import namespace

__all__ = ["uniform"]

STEP = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform(state: int, shape: tuple[int, ...], like: Any) -> Any:
    r"""Return uniform numbers in [0, 1).

    Entry i, in C order, is made of the leading bits of

    .. math:: z_i = h(s + (i + 1)\,\gamma \bmod 2^{64}),

    where :math:`\gamma` is odd, near :math:`2^{64}` over the golden ratio, and h is the finaliser of SplitMix64: as
    many bits as the precision holds (53, 24, 11), so that every value is exact.

    Parameters
    ----------
    state : int
        :math:`s`, from 0 to :math:`2^{64} - 1`; a different one for every use.
    shape : tuple of int
    like : array
        The result is of its library and precision.

    Returns
    -------
    array of that shape

    References
    ----------
    :cite:t:`steele2014`.

    Examples
    --------
    >>> import numpy as np
    >>> uniform(7, (2, 2), np.ones(1)).round(4)
    array([[0.3898, 0.0168],
           [0.9008, 0.5829]])
    """
    state, bits, xp = integer("state", state, at_least=0, at_most=2**64 - 1), precision(like), namespace(like)
    z = xp.arange(1, math.prod(shape) + 1, dtype=xp.uint64) * STEP + state
    z = (z ^ (z >> 30)) * FIRST
    z = (z ^ (z >> 27)) * SECOND
    z = (z ^ (z >> 31)) >> (64 - bits)
    return xp.reshape(xp.astype(z, like.dtype) * 2.0**-bits, shape)


def precision(like: Any) -> int:
    """Return the number of bits of the significand of a real array, the leading one included."""
    xp = namespace(like)
    if not xp.isdtype(like.dtype, "real floating"):
        raise TypeError(f"like must be an array of real floating point numbers, got dtype {like.dtype}")
    return 1 - round(math.log2(xp.finfo(like.dtype).eps))
