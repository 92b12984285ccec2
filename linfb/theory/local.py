"""The synapse-local rule: one mode behind a channel whose two factors both grow."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import elliprf

from linfb._checks import real, real_array
from linfb.theory.modes import non_negative, together


def local_time(strength: Any, s: float, a: float, c: float, q: float, p: float) -> np.ndarray:
    r"""Return when one mode under the synapse-local rule has a given strength, without weight decay.

    .. math::
        t = \int_{c}^{c'} \frac{dx}{a(x)\,(s - x\,a(x))}, \qquad
        a(x)^2 = a^2 + (p^2 + q^2) \sinh^2(x - c) + p q \sinh 2(x - c) ,

    where x is the readout's size and c' its size at the end, :math:`c' a(c')` being the given strength.

    Parameters
    ----------
    strength : array_like
        Strengths of the mode, from what it has at t = 0, a c, to below s.
    s : float
        Singular value of the task, > 0.
    a : float
        Size of W1 = a g v^T at t = 0, > 0, with a hidden unit vector g.
    c : float
        Size of W2 = c u g^T at t = 0, >= 0.
    q, p : float
        Sizes of the mirror Q = q g z^T and the reader P = p z u^T at t = 0, >= 0, with a unit vector z of the channel.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, shaped like `strength`.

    Raises
    ------
    TypeError, ValueError
        If an argument is outside its range or not finite.

    Notes
    -----
    Exact: the three invariants of the flow :math:`\dot a = qpe`, :math:`\dot c = ae`, :math:`\dot q = ape`,
    :math:`\dot p = aqe` with :math:`e = s - ac` leave one quadrature, done to a relative accuracy of 1e-11, or of 1e-15
    s / (s - strength) where that is worse. The readout grows like the logarithm of p + q: it ends the larger, and the
    first layer the smaller, the smaller the start.
    Derived in :doc:`/derivations/local_mode`; checked in ``tests/test_theory_local.py`` against
    :func:`linfb.simulate`.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> local_time([0.5, 1.0, 1.5], 2.0, a=0.1, c=0.1, q=0.1, p=0.1).round(3)
    array([3.889, 4.641, 5.209])
    """
    strength, s, a = real_array("strength", strength), real("s", s, above=0.0), real("a", a, above=0.0)
    c, q, p = (real(name, value, at_least=0.0) for name, value in (("c", c), ("q", q), ("p", p)))
    if np.any(strength < a * c * (1 - 1e-12)) or np.any(strength >= s):
        raise ValueError(f"strength must be at least a * c = {a * c:g} and below s = {s:g}, got {strength}")

    def first_layer(grown: float) -> float:
        return np.sqrt(a**2 + (p**2 + q**2) * np.sinh(grown) ** 2 + p * q * np.sinh(2 * grown))

    scale = a / (p + q) if p + q > 0 else 1.0  # of the readout's growth while the mode is small

    def pace(x: float) -> float:
        grown = scale * np.sinh(x)
        size = first_layer(grown)
        return scale * np.cosh(x) / (size * (s - size * (c + grown)))

    def time(value: float) -> float:
        if value <= a * c:
            return 0.0
        most = min(value / a, max(1.0, np.arcsinh(value / max(p, q, 1e-300))))  # as a(x) > a and > p sinh(x - c)
        end = brentq(lambda y: first_layer(y) * (c + y) - value, 0.0, 1.01 * most, xtol=1e-300, rtol=1e-15)
        return quad(pace, 0.0, np.arcsinh(end / scale), epsabs=0.0, epsrel=1e-12, limit=500, full_output=True)[0]

    return np.reshape([time(value) for value in strength.ravel()], strength.shape)[()]


def local_escape_time(s: Any, a: Any, q: Any, p: Any, *, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return when a mode under the synapse-local rule leaves a small start, or whether it never does.

    .. math::
        t = \frac{R}{s} \quad (\lambda = 0), \qquad t = -\frac1\lambda \ln\Bigl(1 - \frac{\lambda R}{s}\Bigr), \qquad
        R = R_F(a^2, q^2, p^2)

    with Carlson's elliptic integral :math:`R_F`, which is 1 / a if the three agree; the mode fades if
    :math:`\lambda R \ge s`.

    Parameters
    ----------
    s : array_like
        Singular value of the task, > 0.
    a, q, p : array_like
        Sizes at t = 0 of the first layer, the mirror and the reader along the mode as in :func:`local_time`, >= 0; at
        most one of them zero.
    weight_decay : float
        Decay of all four arrays, in units of 1 / tau.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, with the shape to which the arguments broadcast; infinite for starts
        that learn nothing.

    Raises
    ------
    TypeError, ValueError
        If an argument is outside its range or not finite, or the shapes do not broadcast.

    Notes
    -----
    The time in which three sizes that drive each other, :math:`\dot a = qps` and so on, become infinite: what is left
    of the rule as long as the strength is small. From equal starts :math:`\epsilon` it is :math:`1/(s\epsilon)`, not a
    logarithm; a reader of order one makes it one, :math:`\ln(4p/(a + q)) / (sp)`. The mode is half learned later by

    .. math:: \frac1{s^2} \Bigl[ \tfrac12 C^2 - (2 - \ln 2)\,C - \ln 2 - \tfrac{\pi^2}{12} + \tfrac12 \ln^2 2
              \Bigr] + O(C^{-1}), \qquad C e^C = \frac{s}{p + q} ,

    if a, q and p are small; if p is of order one by a constant. With decay the threshold
    :math:`\lambda R = s` is that of the whole flow to leading order in :math:`\lambda`.
    Derived in :doc:`/derivations/local_mode`; checked in ``tests/test_theory_local.py``, with the orders.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> local_escape_time(2.0, 0.01, 0.01, [0.01, 1.0]).round(2)
    array([50.  ,  2.65])
    >>> local_escape_time(2.0, 0.01, 0.01, 0.01, weight_decay=[0.01, 0.03][1])
    np.float64(inf)
    """
    s, a, q, p = (non_negative(name, value) for name, value in (("s", s), ("a", a), ("q", q), ("p", p)))
    together(s=s, a=a, q=q, p=p)
    decay = real("weight_decay", weight_decay, at_least=0.0)
    if np.any(s == 0):
        raise ValueError("s must be > 0")
    if np.any((a == 0).astype(int) + (q == 0) + (p == 0) > 1):
        raise ValueError(f"a, q and p must not be zero but for one of them, got {a}, {q} and {p}")
    time = np.asarray(elliprf(a**2, q**2, p**2) / s)
    if decay > 0:
        leaves = decay * time < 1
        time[leaves], time[~leaves] = -np.log1p(-decay * time[leaves]) / decay, np.inf
    return time[()]
