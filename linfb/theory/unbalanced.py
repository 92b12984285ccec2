"""One mode from an unbalanced start: between a sigmoidal curve and an exponential one."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import real_array
from linfb.theory.modes import non_negative, together


def unbalanced_mode_strength(t: Any, s: Any, c0: Any, imbalance: Any, *, kappa: Any = 1.0) -> np.ndarray:
    r"""Return the strength c(t) of a single mode whose two layers differ in size, without weight decay.

    .. math::
        \dot c = (s - c)\sqrt{\mu^2 + 4\kappa c^2}, \qquad
        c = \frac{z - \mu^2 / z}{4\sqrt\kappa}, \qquad
        \frac{z_+ - z}{z + z_-} = \frac{z_+ - z_0}{z_0 + z_-}\, e^{-2\omega t},

    with :math:`\omega = \sqrt{\kappa s^2 + \mu^2/4}`, :math:`z_\pm = 2\omega \pm 2\sqrt\kappa\,s`.

    Parameters
    ----------
    t : array_like
        Times >= 0, in units of tau = 1 / learning rate.
    s : array_like
        Singular value of the task, >= 0.
    c0 : array_like
        Strength at t = 0, >= 0.
    imbalance : array_like
        :math:`\mu = \|W_1\|^2 - \kappa\|W_2\|^2` along the mode, of either sign, which does not matter.
    kappa : array_like
        Share of the mode's output direction that the channel sees, >= 0.

    Returns
    -------
    numpy.ndarray or float
        c, with the shape to which the arguments broadcast.

    Raises
    ------
    ValueError
        If an argument is negative (other than the imbalance) or not finite, or the shapes do not broadcast.

    Notes
    -----
    Assumes one mode, whitened inputs, aligned Q and a start along the mode: W1 = a g v^T, W2 = b u g^T with a hidden
    unit vector g, so that c0 = a b and mu = a^2 - kappa b^2; z = (a + sqrt(kappa) b)^2. Exact, without overflow or
    cancellation. Balanced, mu = 0, it is :func:`linfb.theory.mode_strength`. For large mu the mode is learned lazily:
    at the rate \|mu\|, whatever the channel sees. The curve has an inflection, and is called rich, for \|mu\| below
    :func:`linfb.theory.rich_imbalance`. An imbalance always speeds the mode up. Derived in
    :doc:`/derivations/unbalanced_mode`, checked in ``tests/test_theory_unbalanced.py``.

    References
    ----------
    :cite:p:`saxe2013,domine2024,hanut2025`

    Examples
    --------
    >>> unbalanced_mode_strength([0.0, 1.0, 1e4], 2.0, 0.01, 0.5)
    array([0.01  , 1.6056..., 2.    ])
    """
    names = (("t", t), ("s", s), ("c0", c0), ("kappa", kappa))
    t, s, c0, kappa = (non_negative(name, value) for name, value in names)
    mu = np.abs(real_array("imbalance", imbalance))
    together(t=t, s=s, c0=c0, imbalance=mu, kappa=kappa)
    root = np.sqrt(kappa)
    twice, start = np.hypot(2 * root * s, mu), np.hypot(2 * root * c0, mu)  # 2 omega, and the same of c0
    high, z0 = twice + 2 * root * s, start + 2 * root * c0
    low = _ratio(mu**2, high)
    small, rest = np.exp(-twice * t), -np.expm1(-twice * t)
    end = 2 * s * (1 + _ratio(2 * root * s, twice + mu))
    begin = 2 * c0 * (1 + _ratio(2 * root * c0, start + mu))
    above, below = z0 * high + high * low * rest + low * z0 * small, z0 * rest + low + high * small
    grown = ((z0 + low) * end * rest + 2 * twice * begin * small) * (above + mu * below)
    return np.where(above > 0, _ratio(grown, 4 * above * below), c0)[()]


def _ratio(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return upper / lower, zero where the latter is."""
    upper, lower = np.broadcast_arrays(upper, lower)
    return np.divide(upper, lower, out=np.zeros(upper.shape), where=lower > 0)


def rich_imbalance(s: Any, *, kappa: Any = 1.0) -> np.ndarray:
    r"""Return the imbalance below which a mode is learned along a sigmoidal curve, above which along a concave one.

    .. math:: |\mu| < s\,\sqrt{\kappa / 2}

    Parameters
    ----------
    s : array_like
        Singular value of the task, >= 0.
    kappa : array_like
        Share of the mode's output direction that the channel sees, >= 0.

    Returns
    -------
    numpy.ndarray or float
        Bounds of \|mu\|, with the shape to which the arguments broadcast.

    Raises
    ------
    ValueError
        If an argument is negative or not finite, or the shapes do not broadcast.

    Notes
    -----
    Below it the curve accelerates while :math:`4c/s` lies between :math:`1 \mp \sqrt{1 - 2\mu^2/(\kappa s^2)}`; above
    it nowhere, from whatever start. A channel moves the boundary between rich and lazy by sqrt(kappa): behind a narrow
    one a smaller imbalance is enough to be lazy. Of d equally strong modes behind a random channel, each with the
    imbalance mu, the share ``expected_learned_fraction(r / m, d / m, sqrt(2) * abs(mu) / s)`` is rich.
    Derived in :doc:`/derivations/unbalanced_mode`, checked in ``tests/test_theory_unbalanced.py``.

    References
    ----------
    :cite:p:`domine2024`

    Examples
    --------
    >>> rich_imbalance(2.0, kappa=[0.5, 0.125])
    array([1. , 0.5])
    """
    s, kappa = non_negative("s", s), non_negative("kappa", kappa)
    together(s=s, kappa=kappa)
    return (s * np.sqrt(kappa / 2))[()]
