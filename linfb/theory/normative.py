"""The normative rule: how long a channel that follows the weights serves the modes that it has."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import integer, real_array
from linfb.theory.modes import non_negative


def normative_turn_time(s: Any, a: Any, rank: int) -> np.ndarray:
    r"""Return when each mode that is not served would turn the channel of the normative rule to itself.

    .. math:: t_j = \frac{1}{a_j s_j} \sqrt{s_r - s_j^2 / s_r}, \qquad j > r

    Parameters
    ----------
    s : array_like, shape (mode,)
        Strengths of the task's modes, > 0, in falling order.
    a : array_like, shape (mode,)
        Sizes of W1 v_j at t = 0, > 0 and small.
    rank : int
        Number r of directions of the channel, >= 1, that serve the first r modes.

    Returns
    -------
    numpy.ndarray, shape (mode - rank,)
        Times in units of tau = 1 / learning rate; the smallest one is when the channel turns.

    Raises
    ------
    TypeError, ValueError
        If an argument is outside its range, the strengths rise or a shape does not fit.

    Notes
    -----
    The channel descends :math:`\tfrac12\|QP - W_2^\top\|^2` and serves the r largest singular values of the readout,
    :math:`\sqrt{s_i}` once the modes are learned from balanced starts. The readout goes on learning the others from
    what W1 holds of them by chance, :math:`c_j = a_j s_j t`. The state is left where

    .. math:: c_j^2 > s_r - s_j^2 / s_r ,

    before the readout of mode j is the larger one, whatever the channel's rate (exact for :math:`a_j = 0`); a mode that
    is stronger than a served one is turned to at once. The disturbance needs time to grow: from starts of scale
    :math:`\epsilon` the channel is late by a share of the time that falls roughly like :math:`\epsilon^{1/2}` up to
    logarithms (:math:`\epsilon^{0.35}` was measured between 1e-2 and 1e-3; at 3e-3 it is 7 to 17 % at a rate of 30), and
    a start that is aligned exactly has no disturbance and stays. Hidden vectors W1 v_j of
    waiting modes are taken as orthogonal. What the channel does next starts from other weights and has no formula here.
    Derived in :doc:`/derivations/normative_turn`; checked in ``tests/test_theory_normative.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> normative_turn_time([3.0, 2.0, 1.0], [0.01, 0.01, 0.01], rank=1).round(1)
    array([ 64.5, 163.3])
    """
    s = non_negative("s", real_array("s", s, ("mode",)))
    a, rank = non_negative("a", real_array("a", a, s.shape)), integer("rank", rank, at_least=1)
    if np.any(s == 0) or np.any(np.diff(s) > 0):
        raise ValueError(f"s must be > 0 and fall, got {s}")
    if np.any(a == 0):
        raise ValueError(f"a must be > 0, got {a}")
    if rank >= s.size:
        return np.zeros(0)
    served, waiting = s[rank - 1], s[rank:]
    return np.sqrt(served - waiting**2 / served) / (a[rank:] * waiting)
