"""The normative rule: how long a channel that follows the weights serves the modes that it has."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import integer, real, real_array
from linfb.theory.modes import non_negative


def normative_turn_time(s: Any, a: Any, rank: int, *, rate: float | None = None) -> np.ndarray:
    r"""Return when each mode that is not served would turn the channel of the normative rule to itself.

    .. math::
        t_j = \min_{i \le r} \frac{c_i}{a_j s_j} \sqrt{1 - s_j^2 / s_i^2}, \qquad j > r, \qquad
        c_i^2 = \frac{\mu_i}{2} + \sqrt{s_i^2 + \frac{\mu_i^2}{4}}, \quad \mu_i = \frac{2 s_i^{3/2}}{3\rho} .

    Parameters
    ----------
    s : array_like, shape (mode,)
        Strengths of the task's modes, > 0, in falling order.
    a : array_like, shape (mode,)
        Sizes of W1 v_j at t = 0, > 0 and small.
    rank : int
        Number r of directions of the channel, >= 1, that serve the first r modes.
    rate : float, optional
        The channel's rate :math:`\rho` relative to that of the weights, > 0; None is the limit of a fast channel, in
        which :math:`c_i^2 = s_i`.

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
    The channel descends :math:`\tfrac12\|QP - W_2^\top\|^2` and serves the r largest singular values of the readout.
    The readout goes on learning the others from what W1 holds of them by chance, :math:`c_j = a_j s_j t`, and the
    channel turns where

    .. math:: c_j^2 > c_i^2 \, (1 - s_j^2 / s_i^2) ,

    before it would be the larger one, whatever the channel's rate (exact for :math:`a_j = 0`). The rate counts for
    :math:`c_i`: a channel that lags by :math:`1/\rho` leaves a readout that is larger than the first layer,
    :math:`\mu_i = c_i^2 - a_i^2` to first order in :math:`1/\rho`, from small balanced starts. A mode that is stronger
    than a served one is turned to at once.
    The disturbance needs time to grow: from starts of scale :math:`\epsilon` the turn is late by a share of the
    time that falls like :math:`\epsilon^{1/2}` up to logarithms; with the readout as it was found, orders of 0.40
    to 0.49 were measured between 1e-2 and 1e-4 at rates of 3 to 300 (at 1e-3 it is 3 to 11 % late). A start that is
    aligned exactly has no disturbance and stays. Hidden vectors W1 v_j of waiting modes are taken as orthogonal.
    The served modes themselves are not learned in a logarithmic time: unless the channel is fast,
    :math:`\rho\epsilon \gg s`, it has to grow with the readout, :math:`\dot\sigma = 2\rho\sigma(c - \sigma)`,
    :math:`\sigma = pq`, and the mode is half learned at :math:`T(2\rho s^2\sigma_0)^{-1/3} + O(1)`, where T =
    3.127348 is when the solution of :math:`\dddot L = e^L` from zeros becomes infinite. What the channel does after
    its first turn starts from other weights and has no formula here.
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
    served, waiting = s[:rank, None], s[rank:]
    lag = 0.0 if rate is None else 2 * served**1.5 / (3 * real("rate", rate, above=0.0))
    readout = np.sqrt(lag / 2 + np.sqrt(served**2 + lag**2 / 4))
    return (readout * np.sqrt(1 - (waiting / served) ** 2)).min(axis=0, initial=np.inf) / (a[rank:] * waiting)
