"""Unbalanced starts: one mode between a sigmoidal curve and an exponential one, and small starts of any imbalance."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import real, real_array, times_array
from linfb.theory.exact import checked_start, riccati_map, seen_modes
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


def growing_part(A: Any, W1: Any, W2: Any, *, P: Any = None) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the M-balanced start that a small start of any imbalance behaves like.

    .. math::
        W_1 = pV^\top, \qquad PW_2 = Up^\top, \qquad p = \tfrac12\bigl(W_1(0)V + W_2(0)^\top P^\top U\bigr), \qquad
        PA = USV^\top

    Parameters
    ----------
    A : array_like, shape (out, in)
        Input-output correlation; inputs are whitened.
    W1 : array_like, shape (hidden, in)
        First layer at time 0.
    W2 : array_like, shape (out, hidden)
        Second layer at time 0.
    P : array_like, shape (rank, out), optional
        The reader of the channel, any matrix; None is backpropagation, P = I.

    Returns
    -------
    W1 : numpy.ndarray, shape (hidden, in)
    W2 : numpy.ndarray, shape (out, hidden)
        What of it the channel does not see is as it was.

    Raises
    ------
    ValueError
        If a shape does not fit or an entry is not finite.

    Notes
    -----
    For a start of scale eps, without weight decay and with at least as many hidden units as modes. Strengths of modes,
    and all else that is symmetric in what the channel sees of the modes, are kept to order eps^2 ln(1/eps), or eps^2 if
    the channel sees no inputs and outputs beside the modes. The antisymmetric part,
    :math:`u_i^\top PW_2W_1v_j - u_j^\top PW_2W_1v_i`, is lost: it reaches :math:`\varepsilon^{1 + \sigma_j/\sigma_i}`
    when mode i is learned and the weaker j is not. What the channel does not see is kept to order eps or eps ln(1/eps).
    :func:`small_start_map` is of order eps^2 in everything. Derived in ``derivations/small_starts.py``, checked in
    ``tests/test_theory_unbalanced.py``.

    References
    ----------
    :cite:p:`saxe2013,braun2022,hanut2025`

    Examples
    --------
    >>> growing_part([[2.0]], [[0.3]], [[0.1]])
    (array([[0.2]]), array([[0.2]]))
    """
    A, W1, W2, P = checked_start(A, W1, W2, P)
    left, _, right = seen_modes(A, P)
    growing = (W1 @ right + W2.T @ P.T @ left) / 2
    return growing @ right.T, W2 + np.linalg.pinv(P) @ (left @ growing.T - P @ W2)


def small_start_map(A: Any, W1: Any, W2: Any, times: Any, *, P: Any = None, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return the map of a two-layer linear network from a small start of any imbalance, to second order in its scale.

    .. math::
        W_2 W_1(t) = X_2 \Bigl(I + \int_0^t (X_1^\top X_1 + X_2^\top M X_2)\,ds\Bigr)^{-1} X_1^\top
        + O(\varepsilon^2), \qquad
        \begin{pmatrix} X_1 \\ X_2 \end{pmatrix}(t) =
        \exp\Bigl[t \begin{pmatrix} -\lambda I & A^\top M \\ A & -\lambda I \end{pmatrix}\Bigr]
        \begin{pmatrix} W_1(0)^\top \\ W_2(0) \end{pmatrix}

    Parameters
    ----------
    A, W1, W2, times, P, weight_decay
        As in :func:`exact_map`; any start.

    Returns
    -------
    numpy.ndarray, shape (time, out, in)
        W2 @ W1 on the host.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or times do not increase.

    Notes
    -----
    From an M-balanced start it is :func:`exact_map`. In general it solves the flow without its two terms in the
    imbalance C, :math:`\tfrac12W_1^\top C` and :math:`-\tfrac12W_2C`. C stays as small as at the start, eps^2, and
    makes of what grows only what decays: the error is of order eps^2 (proved up to logarithms) while, without weight
    decay, times are far below 1 / eps^2. Besides :func:`growing_part` it keeps what decays, inputs out of the
    channel's reach and their effect on the readout. Derived in ``derivations/small_starts.py``, order 2 measured in
    ``tests/test_theory_unbalanced.py``.

    References
    ----------
    :cite:p:`fukumizu1998,braun2022,hanut2025`

    Examples
    --------
    >>> small_start_map([[2.0]], [[0.03]], [[0.01]], [0.0, 1.0, 10.0])[:, 0, 0]
    array([3.0000e-04, 2.1604...e-02, 2.0000e+00])
    """
    A, W1, W2, P = checked_start(A, W1, W2, P)
    times, decay = times_array("times", times), real("weight_decay", weight_decay, at_least=0.0)
    return riccati_map(A, W1, W2, P, times, decay, 0.0, np.concatenate([W1, (P @ W2).T], axis=1))
