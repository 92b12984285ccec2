"""What is learned behind a randomly drawn channel, and when: distributions over channels, without simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import real
from linfb.theory.modes import non_negative, time_to_half
from linfb.theory.random_channels import overlap_cdf, overlap_distribution


def expected_learned_fraction(rank_fraction: float, task_fraction: float, threshold: Any) -> np.ndarray:
    r"""Return the share of a task's modes that survive weight decay behind a random channel.

    A mode is learned if :math:`\sqrt\kappa\, s > \lambda`; for equal singular values s this is the share of overlaps
    above :math:`(\lambda / s)^2`.

    Parameters
    ----------
    rank_fraction, task_fraction : float
        As in :func:`linfb.theory.overlap_density`.
    threshold : array_like
        lambda / s >= 0; zero means the limit from above, min(1, rank_fraction / task_fraction).

    Returns
    -------
    numpy.ndarray or float
        Shares of the d modes, with the shape of `threshold`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`linfb.theory.overlap_density`; or if the threshold is negative.

    Notes
    -----
    For wide outputs; at finite m the mean over channels deviates by O(1 / m). Equal singular values are assumed: the
    singular values of PA are then s times the roots of the overlaps. For one given channel see
    :func:`linfb.theory.learned_modes`.

    References
    ----------
    :cite:p:`collins2005,hanut2025`

    Examples
    --------
    >>> expected_learned_fraction(0.25, 0.5, [0.0, 0.5, 1.0])
    array([0.5       , 0.39182655, 0.        ])
    """
    threshold = non_negative("threshold", threshold)
    return (1.0 - overlap_cdf(threshold**2, rank_fraction, task_fraction))[()]


def time_to_half_cdf(t: Any, s: float, c0: float, rank: int, n_out: int) -> np.ndarray:
    r"""Return the probability that a mode behind a random channel has reached half of its strength by time t.

    .. math:: \Pr[t_{1/2} \le t] = \Pr\Bigl[\kappa \ge \Bigl(\frac{\ln(s / c_0 - 1)}{2 s t}\Bigr)^2\Bigr]

    Parameters
    ----------
    t : array_like
        Times >= 0, in units of tau = 1 / learning rate.
    s : float
        Singular value of the task.
    c0 : float
        Strength at t = 0, in (0, s / 2], the same for every channel.
    rank, n_out : int
        As in :func:`linfb.theory.overlap_distribution`.

    Returns
    -------
    numpy.ndarray or float
        Probabilities, with the shape of `t`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    One mode, no weight decay; exact at any size. See :func:`linfb.theory.time_to_half`.

    References
    ----------
    :cite:p:`absil2006,hanut2025`

    Examples
    --------
    >>> time_to_half_cdf([1.0, 3.0, 10.0], 2.0, 0.01, 2, 8)
    array([0.        , 0.5225..., 0.9483...])
    """
    fastest = time_to_half(real("s", s), real("c0", c0))
    t = non_negative("t", t)
    needed = np.divide(fastest, t, out=np.full(t.shape, np.inf), where=t > 0)
    return np.where(t >= fastest, overlap_distribution(rank, n_out).sf(np.minimum(needed, 1.0) ** 2), 0.0)[()]


def time_to_half_quantile(q: Any, s: float, c0: float, rank: int, n_out: int) -> np.ndarray:
    """Return the times to half by which a share q of random channels has learned a mode, the inverse of the law above.

    Parameters
    ----------
    q : array_like
        Shares in [0, 1].
    s, c0, rank, n_out
        As in :func:`time_to_half_cdf`.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, with the shape of `q`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Assumptions as in :func:`time_to_half_cdf`, which ``tests/test_theory_random_channels.py`` inverts.

    References
    ----------
    :cite:p:`absil2006`

    Examples
    --------
    >>> time_to_half_quantile([0.0, 0.5], 2.0, 0.01, 2, 8)
    array([1.32332621, 2.91351899])
    """
    q = non_negative("q", q)
    if np.any(q > 1):
        raise ValueError(f"q must be at most 1, its largest entry is {q.max()}")
    kappa = overlap_distribution(rank, n_out).isf(q)
    return time_to_half(real("s", s), real("c0", c0), kappa=kappa)
