"""What is learned behind a randomly drawn channel, and when: distributions over channels, without simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import real
from linfb.theory.modes import non_negative, time_to_half
from linfb.theory.random_channels import inverse_overlap_tail, overlap_cdf, overlap_distribution

HALVINGS = 60  # of an interval of length one, down to rounding


def expected_learned_fraction(
    rank_fraction: float, task_fraction: float, threshold: Any, *, n_out: int | None = None
) -> np.ndarray:
    r"""Return the share of a task's modes that survive weight decay behind a random channel.

    A mode is learned if :math:`\sqrt\kappa\, s > \lambda`; for equal singular values s this is the share of overlaps
    above :math:`(\lambda / s)^2`.

    Parameters
    ----------
    rank_fraction, task_fraction : float
        As in :func:`linfb.theory.overlap_density`.
    threshold : array_like
        lambda / s >= 0; zero means the limit from above, min(1, rank_fraction / task_fraction).
    n_out : int, optional
        Number m of outputs, for the first correction of :func:`linfb.theory.overlap_cdf`; None is the limit of many.

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
    Equal singular values are assumed: the singular values of PA are then s times the roots of the overlaps. The limit
    deviates from the mean over channels of finite width by O(1 / m), most of which `n_out` corrects. For one given
    channel see :func:`linfb.theory.learned_modes`. Derived in :doc:`/derivations/overlap_correction` from the law in
    :doc:`/derivations/overlap_spectrum`, checked in ``tests/test_theory_random_channels.py`` and
    ``tests/test_theory_phase.py``.

    References
    ----------
    :cite:p:`collins2005,hanut2025`

    Examples
    --------
    >>> expected_learned_fraction(0.25, 0.5, [0.0, 0.5, 1.0])
    array([0.5       , 0.39182655, 0.        ])
    """
    threshold = non_negative("threshold", threshold)
    return (1.0 - overlap_cdf(threshold**2, rank_fraction, task_fraction, n_out=n_out))[()]


def expected_loss(
    rank_fraction: float, task_fraction: float, threshold: Any, *, n_out: int | None = None
) -> np.ndarray:
    r"""Return the loss at which learning ends behind a random channel, as a share of the loss of knowing nothing.

    .. math::
        \frac{\langle\|A - W_2W_1(\infty)\|^2\rangle}{\|A\|^2}
        = \Bigl\langle \min\Bigl(1, \frac{\theta^2}{\kappa}\Bigr) \Bigr\rangle
        = F(\theta^2) + \theta^2 \int_{\theta^2}^1 \frac{dF(x)}{x}, \qquad \theta = \lambda / s,

    with the law F of the overlaps of the task's d equally strong modes.

    Parameters
    ----------
    rank_fraction, task_fraction, threshold, n_out
        As in :func:`expected_learned_fraction`.

    Returns
    -------
    numpy.ndarray or float
        Shares in [0, 1], with the shape of `threshold`; for threshold zero max(0, 1 - rank_fraction / task_fraction).

    Raises
    ------
    TypeError, ValueError
        As in :func:`expected_learned_fraction`.

    Notes
    -----
    Closed form, see :func:`linfb.theory.inverse_overlap_tail`. A learned mode keeps the error lambda / sigma, since
    decay shrinks it (:func:`linfb.theory.end_point`). For a channel wider than the task and weak decay the share is
    theta^2 (1 - alpha) / (beta - alpha) in the limit, and theta^2 (m - d - 1) / (r - d - 1) at finite size
    (:func:`linfb.theory.overlap_moment`). Derived in :doc:`/derivations/overlap_tail` and
    :doc:`/derivations/overlap_correction`, checked in ``tests/test_theory_phase.py``.

    References
    ----------
    :cite:p:`collins2005,hanut2025`

    Examples
    --------
    >>> expected_loss(0.25, 0.5, [0.0, 0.5, 1.0])
    array([0.5       , 0.7967..., 1.        ])
    """
    seen = non_negative("threshold", threshold) ** 2
    unlearned = overlap_cdf(seen, rank_fraction, task_fraction, n_out=n_out)
    return (unlearned + seen * inverse_overlap_tail(seen, rank_fraction, task_fraction, n_out=n_out))[()]


def phase_boundaries(task_fraction: float, threshold: float) -> tuple[float, float]:
    r"""Return how wide a random channel must be to teach any mode, and to teach all of them, under weight decay.

    .. math::
        \sin^2\bigl(\arcsin\theta - \varphi\bigr)_+, \qquad
        \sin^2\Bigl(\min\bigl(\arcsin\theta + \varphi, \tfrac\pi2\bigr)\Bigr), \qquad
        \sin^2\varphi = \alpha, \quad \theta = \lambda / s .

    Parameters
    ----------
    task_fraction : float
        alpha = d / m, in (0, 1].
    threshold : float
        lambda / s in [0, 1].

    Returns
    -------
    any, all : float
        Fractions r / m. Below the first no mode of a wide task is learned, from the second on all are.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a finite number or out of range.

    Notes
    -----
    With beta = sin^2 psi the edges of the law of the overlaps are sin^2(psi -+ phi): the boundaries are where an edge
    is theta^2, straight lines in the angles. For alpha >= 1 - theta^2 no channel narrower than the output teaches all.
    In the limit of many outputs; at finite m the transitions are smooth over about m^(-2/3).
    Derived in :doc:`/derivations/overlap_tail`, checked in ``tests/test_theory_phase.py``.

    References
    ----------
    :cite:p:`wachter1980,collins2005`

    Examples
    --------
    >>> [round(edge, 4) for edge in phase_boundaries(0.1, 0.5)]
    [0.0402, 0.5598]
    >>> [round(edge, 4) for edge in phase_boundaries(0.25, 0.5)]
    [0.0, 0.75]
    """
    own = np.arcsin(np.sqrt(real("task_fraction", task_fraction, above=0.0, at_most=1.0)))
    angle = np.arcsin(real("threshold", threshold, at_least=0.0, at_most=1.0))
    return float(np.sin(max(angle - own, 0.0)) ** 2), float(np.sin(min(angle + own, np.pi / 2)) ** 2)


def half_learned_fraction(
    t: Any, s: float, c0: float, rank_fraction: float, task_fraction: float, *, weight_decay: float = 0.0,
    n_out: int | None = None,
) -> np.ndarray:  # fmt: skip
    r"""Return the share of a task's modes that a random channel has taught to half of their strength by time t.

    Parameters
    ----------
    t : array_like
        Times >= 0, in units of tau = 1 / learning rate.
    s : float
        Singular value of each of the task's d modes.
    c0 : float
        Strength of each mode at t = 0, in (0, s / 2], the same for every channel.
    rank_fraction, task_fraction : float
        As in :func:`linfb.theory.overlap_density`.
    weight_decay : float
        Decay of both layers and of Q, in units of 1 / tau.
    n_out : int, optional
        As in :func:`expected_learned_fraction`.

    Returns
    -------
    numpy.ndarray or float
        Shares of the d modes, with the shape of `t`. For late times the share of overlaps above
        (2 weight_decay / s)^2: the others end below half of their strength.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Balanced starts along the eigenvectors of the channel's overlap with the task, for which every mode is a scalar
    problem. See :func:`linfb.theory.time_to_half`. Derived in :doc:`/derivations/half_time_decay`, checked in
    ``tests/test_theory_phase.py``.

    References
    ----------
    :cite:p:`collins2005,hanut2025`

    Examples
    --------
    >>> half_learned_fraction([1.0, 5.0, 1e6], 2.0, 0.01, 0.5, 0.25)
    array([0.        , 0.9989..., 1.        ])
    """
    needed, reached = _needed_overlap(t, s, c0, weight_decay)
    shares = 1.0 - overlap_cdf(needed, rank_fraction, task_fraction, n_out=n_out)
    everything = overlap_cdf(np.nextafter(1.0, 0.0), rank_fraction, task_fraction)
    return np.where(reached, np.where(needed < 1, shares, 1.0 - everything), 0.0)[()]


def _needed_overlap(t: Any, s: float, c0: float, weight_decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the overlap with which a mode is half learned at time t, and where one of at most one is enough."""
    s, c0 = real("s", s), real("c0", c0)
    fastest, t = time_to_half(s, c0, weight_decay=weight_decay), non_negative("t", t)
    root = np.divide(fastest, t, out=np.ones(t.shape), where=t >= max(fastest, np.finfo(float).tiny))
    if weight_decay > 0:
        low, high = np.zeros(t.shape), np.ones(t.shape)
        for _ in range(HALVINGS):
            root = (low + high) / 2
            late = time_to_half(s, c0, kappa=root**2, weight_decay=weight_decay) > t
            low, high = np.where(late, root, low), np.where(late, high, root)
    return root**2, t >= fastest


def time_to_half_cdf(t: Any, s: float, c0: float, rank: int, n_out: int, *, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return the probability that a mode behind a random channel has reached half of its strength by time t.

    .. math::
        \Pr[t_{1/2} \le t] = \Pr\Bigl[\kappa \ge \Bigl(\frac{\ln(s / c_0 - 1)}{2 s t}\Bigr)^2\Bigr]
        \quad\text{for } \lambda = 0

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
    weight_decay : float
        Decay of both layers and of Q, in units of 1 / tau.

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
    One mode; exact at any size. See :func:`linfb.theory.time_to_half`. Derived in :doc:`/derivations/overlap_law`,
    :doc:`/derivations/half_time` and :doc:`/derivations/half_time_decay`, checked in
    ``tests/test_theory_random_channels.py``.

    References
    ----------
    :cite:p:`absil2006,hanut2025`

    Examples
    --------
    >>> time_to_half_cdf([1.0, 3.0, 10.0], 2.0, 0.01, 2, 8)
    array([0.        , 0.5225..., 0.9483...])
    """
    needed, reached = _needed_overlap(t, s, c0, weight_decay)
    return np.where(reached, overlap_distribution(rank, n_out).sf(needed), 0.0)[()]


def time_to_half_quantile(
    q: Any, s: float, c0: float, rank: int, n_out: int, *, weight_decay: float = 0.0
) -> np.ndarray:
    """Return the times to half by which a share q of random channels has learned a mode, the inverse of the law above.

    Parameters
    ----------
    q : array_like
        Shares in [0, 1].
    s, c0, rank, n_out, weight_decay
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
    Assumptions as in :func:`time_to_half_cdf`, whose inverse it is by ``tests/test_theory_random_channels.py``. Derived
    in :doc:`/derivations/overlap_law` and :doc:`/derivations/half_time`.

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
    return time_to_half(real("s", s), real("c0", c0), kappa=kappa, weight_decay=weight_decay)
