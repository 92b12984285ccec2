"""One mode of the task: how its strength grows behind a channel that sees a share kappa of its output direction."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import exprel

from linfb._checks import real, real_array


def non_negative(name: str, value: Any) -> np.ndarray:
    """Return `value` as an array of finite numbers >= 0, or raise an error that names the argument."""
    array = real_array(name, value)
    if np.any(array < 0):
        raise ValueError(f"{name} (shape {array.shape}) must be >= 0, its smallest entry is {array.min()}")
    return array


def together(**arrays: np.ndarray) -> None:
    """Raise a ValueError that names the arguments if their shapes do not broadcast."""
    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"shapes do not broadcast: {shapes}") from None


def mode_strength(t: Any, s: Any, c0: Any, *, kappa: Any = 1.0, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return the strength c(t) of a single mode, a logistic with rate 2(sqrt(kappa) s - weight_decay).

    .. math::
        \dot c = 2c\,\bigl(\sqrt\kappa\,(s - c) - \lambda\bigr), \qquad
        c(t) = \frac{c_0\, e^{2gt}}{1 + 2\sqrt\kappa\, c_0\,(e^{2gt} - 1)/(2g)}, \qquad g = \sqrt\kappa\, s - \lambda .

    Parameters
    ----------
    t : array_like
        Times >= 0, in units of tau = 1 / learning rate.
    s : array_like
        Singular value of the task, >= 0.
    c0 : array_like
        Strength at t = 0, >= 0.
    kappa : array_like
        Share of the mode's output direction that the channel sees, u.T @ P.T @ P @ u >= 0: one for backpropagation,
        at most one if P has orthonormal rows.
    weight_decay : float
        Decay of both layers and of Q, in units of 1 / tau.

    Returns
    -------
    numpy.ndarray or float
        c, with the shape to which the arguments broadcast.

    Raises
    ------
    ValueError
        If an argument is negative or not finite, or the shapes do not broadcast.

    Notes
    -----
    Assumes one mode, whitened inputs, aligned Q and a balanced start along the mode: W2 = beta u g^T,
    W1 = sqrt(kappa) beta g v^T with a hidden unit vector g, so that c0 = sqrt(kappa) beta^2. Exact; evaluated without
    overflow while t s is a float, and without cancellation at the critical point sqrt(kappa) s = weight_decay. With
    ``kappa=1`` and no decay it is the mode solution a(t) of :cite:p:`saxe2013` for backpropagation. The end point is
    s - weight_decay / sqrt(kappa), or zero where that is negative.
    Derived in :doc:`/derivations/single_mode` and :doc:`/derivations/critical_mode`, without a channel in
    :doc:`/derivations/saxe_mode`; checked in ``tests/test_theory_modes.py`` against the scalar equation and against the
    matrix flow.

    References
    ----------
    :cite:p:`saxe2013,hanut2025`

    Examples
    --------
    >>> mode_strength([0.0, 1.0, 1e4], 2.0, 0.01)
    array([0.01 , 0.430..., 2.   ])
    >>> mode_strength(1e4, 2.0, 0.01, kappa=0.25, weight_decay=0.1)
    np.float64(1.8)
    """
    t, s, c0, kappa = (non_negative(name, value) for name, value in (("t", t), ("s", s), ("c0", c0), ("kappa", kappa)))
    decay = real("weight_decay", weight_decay, at_least=0.0)
    together(t=t, s=s, c0=c0, kappa=kappa)
    root = np.sqrt(kappa)
    gain = root * s - decay
    decline = -2 * np.abs(gain) * t
    small = np.exp(decline)
    integral = t * exprel(decline)  # of exp(-2 |gain| s) over s
    growing = gain > 0
    numerator = np.where(growing, c0, c0 * small)
    denominator = np.where(growing, small, 1.0) + 2 * root * c0 * integral
    return np.divide(numerator, denominator, out=np.zeros(denominator.shape), where=numerator > 0)[()]


def time_to_half(s: Any, c0: Any, *, kappa: Any = 1.0, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return the time at which a mode has half of the strength s that the task gives it.

    .. math::
        t_{1/2} = \frac{1}{2g} \ln\frac{s\,(g - \sqrt\kappa\, c_0)}{c_0\,(2g - \sqrt\kappa\, s)}, \qquad
        g = \sqrt\kappa\, s - \lambda; \qquad
        t_{1/2} = \frac{\ln(s / c_0 - 1)}{2\sqrt\kappa\, s} \quad\text{for } \lambda = 0 .

    Parameters
    ----------
    s : array_like
        Singular value of the task, > 0.
    c0 : array_like
        Strength at t = 0, in (0, s / 2].
    kappa : array_like
        Share of the mode's output direction that the channel sees, >= 0.
    weight_decay : float
        Decay of both layers and of Q, in units of 1 / tau.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, with the shape to which the arguments broadcast; infinite for modes
        that never get there, sqrt(kappa) s <= 2 weight_decay.

    Raises
    ------
    ValueError
        If an argument is outside its range or not finite, or the shapes do not broadcast.

    Notes
    -----
    Assumptions as in :func:`mode_strength`; without decay a channel slows a mode down by 1 / sqrt(kappa), all else
    equal. The time falls as kappa grows, so that it has an inverse. Derived in :doc:`/derivations/half_time` and
    :doc:`/derivations/half_time_decay`, checked in ``tests/test_theory_modes.py``.

    References
    ----------
    :cite:p:`saxe2013,hanut2025`

    Examples
    --------
    >>> time_to_half(2.0, 0.01, kappa=[1.0, 0.25])
    array([1.3233..., 2.6466...])
    >>> time_to_half(2.0, 0.01, kappa=[1.0, 0.25], weight_decay=0.4)
    array([1.7436..., 5.3238...])
    """
    s, c0, kappa = (non_negative(name, value) for name, value in (("s", s), ("c0", c0), ("kappa", kappa)))
    decay = real("weight_decay", weight_decay, at_least=0.0)
    together(s=s, c0=c0, kappa=kappa)
    if np.any(s == 0):
        raise ValueError("s must be > 0")
    if np.any(c0 == 0) or np.any(c0 > s / 2):
        raise ValueError(f"c0 must be > 0 and at most s / 2, got c0 = {c0} for s = {s}")
    s, c0, root = np.broadcast_arrays(s, c0, np.sqrt(kappa))
    excess, never = root * s - 2 * decay, np.where(2 * c0 < s, np.inf, 0.0)
    odds = np.divide(s * (root * (s - c0) - decay), c0 * excess, out=np.ones(s.shape), where=excess > 0)
    return np.divide(np.log(odds), 2 * (root * s - decay), out=never, where=excess > 0)[()]
