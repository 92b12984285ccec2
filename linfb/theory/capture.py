"""How an error-driven reader with a Kolen-Pollack mirror goes round: the cycle of capture, and when there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import ellipk

from linfb._checks import real
from linfb.theory.turning import falling

_TOLERANCE = 1e-11


def capture_rate(s: Any, rank: int = 1) -> float:
    r"""Return the reader rate above which a captured network goes round in the limit of weak decay.

    With :math:`a = s_r`, :math:`b = s_{r+1}` and :math:`\alpha^2 = a^2\sin^2\varphi + b^2\cos^2\varphi`, the smallest
    rate :math:`\rho^* < \rho_c = a/b^2` at which

    .. math:: \frac{\mathrm d\psi}{\mathrm d\varphi} = \frac{ab}{\alpha^2} - \rho\,\alpha\sin\psi

    has a solution of period :math:`\pi` with :math:`|\psi| < \pi/2`.

    Parameters
    ----------
    s : array_like, shape (mode,)
        Strengths of the task's modes, in falling order, > 0 up to mode `rank`.
    rank : int
        Number r of directions that the channel reads, >= 1.

    Returns
    -------
    float
        Rate relative to that of the weights. Between it and :func:`critical_reader_rate` the cycle and the hidden state
        are both stable: the start decides. Infinite without a hidden mode.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, or the strengths rise.

    Notes
    -----
    The angle of what the captured hidden unit listens to is :math:`\varphi`, :math:`\psi` the angle by which the reader
    lags behind the error; error is hidden from it at :math:`\pi/2`. The solution that is lost at :math:`\rho^*` touches
    that line where :math:`\rho\alpha^3 = ab`, and is found by shooting from there.
    Derived in :doc:`/derivations/captured_rotation`; checked in ``tests/test_theory_capture.py`` by integrated flows on
    both sides.

    References
    ----------
    :cite:p:`hanut2025,kolenpollack1994,leen1990`

    Examples
    --------
    >>> from linfb.theory import critical_reader_rate
    >>> round(capture_rate([2.0, 1.0]), 4), critical_reader_rate([2.0, 1.0], rank=1)
    (0.8045, 2.0)
    """
    pair = _pair(s, rank)
    if pair is None:
        return np.inf
    a, b = pair
    if a - b < 1e-9 * a:  # where the bounds below meet
        return 1 / a

    def beyond(rate: float) -> float:
        start = _touching(a, b, rate)
        return _lag(a, b, rate, start, np.pi / 2)[0] - np.pi / 2

    return float(brentq(beyond, b / a**2, a / b**2, xtol=1e-12, rtol=1e-10))


def capture_period(s: Any, rank: int = 1, *, rate: float | None = None) -> float:
    r"""Return the period of the cycle in which a Kolen-Pollack mirror captures an error-driven reader.

    For an infinitely fast reader

    .. math:: T = \frac{2}{s_r} K(k), \qquad k^2 = 1 - s_{r+1}^2 / s_r^2

    with K the complete elliptic integral of the first kind; at the rate :math:`\rho`

    .. math:: T = \int_0^\pi \frac{\mathrm d\varphi}{\alpha(\varphi)\cos\psi(\varphi)}

    along the periodic solution of :func:`capture_rate`.

    Parameters
    ----------
    s, rank
        As in :func:`capture_rate`.
    rate : float, optional
        The reader's rate :math:`\rho` relative to that of the weights, > 0; infinitely fast if left out.

    Returns
    -------
    float
        Period of the map W2 W1 in units of tau = 1 / learning rate; infinite where there is no cycle.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, or the strengths rise.

    Notes
    -----
    In the limit of weak decay :math:`\lambda`, with an error of order :math:`\lambda^2` (measured). Modes r and r + 1
    take turns while stronger ones stay learned and weaker ones unknown; with r > 1 and more than one hidden mode other
    motions were seen too.
    Derived in :doc:`/derivations/captured_rotation`; checked in ``tests/test_theory_capture.py`` against integrated
    flows.

    References
    ----------
    :cite:p:`hanut2025,kolenpollack1994,leen1990`

    Examples
    --------
    >>> round(capture_period([2.0, 1.0]), 4), round(capture_period([2.0, 1.0], rate=5.0), 4)
    (2.1565, 2.2061)
    >>> capture_period([2.0, 1.0], rate=0.8)
    inf
    """
    pair = _pair(s, rank)
    rate = None if rate is None else real("rate", rate, above=0.0)
    if pair is None:
        return np.inf
    a, b = pair
    if rate is None:
        return float(2 * ellipk(1 - (b / a) ** 2) / a)
    if rate <= capture_rate(s, rank):
        return np.inf
    start = _touching(a, b, rate)
    lag = brentq(lambda psi: _lag(a, b, rate, start, psi)[0] - psi, 0.0, np.pi / 2, xtol=1e-13)
    return float(_lag(a, b, rate, start, lag, clock=True)[1])


def _pair(s: Any, rank: int) -> tuple[float, float] | None:
    """Return the strengths of the weakest learned and the strongest hidden mode, if there is one."""
    s = falling("s", s, rank)
    return (float(s[rank - 1]), float(s[rank])) if s.size > rank and s[rank] > 0 else None


def _hidden(a: float, b: float, phi: float) -> float:
    """Return alpha, the size of the error that is left with the unit at the angle phi."""
    return float(np.hypot(a * np.sin(phi), b * np.cos(phi)))


def _touching(a: float, b: float, rate: float) -> float:
    """Return the angle at which error that is hidden begins to be found, rate alpha^3 = ab, in [0, pi/2]."""
    if a == b:
        return 0.0
    share = ((a * b / rate) ** (2 / 3) - b**2) / (a**2 - b**2)
    return float(np.arcsin(np.sqrt(np.clip(share, 0.0, 1.0))))


def _lag(a: float, b: float, rate: float, start: float, psi: float, *, clock: bool = False) -> np.ndarray:
    """Return the reader's lag half a turn after the unit has the angle `start`, and if asked the time that it took."""

    def rhs(phi: float, state: np.ndarray) -> list[float]:
        alpha = _hidden(a, b, phi)
        turn = a * b / alpha**2 - rate * alpha * np.sin(state[0])
        return [turn, 1 / (alpha * np.cos(state[0]))] if clock else [turn]

    begin = [psi, 0.0] if clock else [psi]
    return solve_ivp(rhs, (start, start + np.pi), begin, method="LSODA", rtol=_TOLERANCE, atol=_TOLERANCE).y[:, -1]
