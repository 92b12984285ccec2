"""How long everything takes when a channel that is too narrow visits one group of modes after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import integer, real, real_array


def multiplexed_times(A: Any, W1: Any, W2: Any, rank: int, *, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return when every mode is half learned if a fast error-driven reader with a fast mirror visits them in turn.

    The channel reads the r largest errors that are left. Mode j waits until fewer than r of the stronger modes have an
    error above :math:`s_j`, and is then learned as if alone, by a logistic that begins at :math:`T_j`:

    .. math::
        t_j = T_j + \tau_j(\tfrac12 s_j), \qquad
        \tau_j(c) = \frac{\ln(f_j / c_j - 1) - \ln(f_j / c - 1)}{2 f_j}, \qquad f_j = s_j - \lambda, \\
        c_j = \tfrac14 e^{-2\lambda T_j} \bigl\| (1 + s_j T_j)\, W_1 v_j + W_2^\top u_j \bigr\|_\perp^2 ,

    where :math:`\perp` takes off the hidden directions of the stronger modes, and mode i has the error :math:`s_j` at
    :math:`T_i + \tau_i(s_i - s_j)`. For small starts of scale :math:`\epsilon` and without decay

    .. math:: t_j \simeq \ln(1/\epsilon) \sum_{i = j,\, j - r,\, j - 2r, \ldots > 0} \frac{1}{s_i} :

    r queues, in each of which learning times add up.

    Parameters
    ----------
    A : array_like, shape (out, in)
        Input-output correlation; inputs are whitened; strengths all different.
    W1 : array_like, shape (hidden, in)
        First-layer weights at t = 0, small; at least as many hidden units as modes.
    W2 : array_like, shape (out, hidden)
        Readout at t = 0, small.
    rank : int
        Number r of directions that the channel reads, >= 1.
    weight_decay : float
        Decay of W1 and W2, in units of 1 / tau; below half of the smallest strength.

    Returns
    -------
    numpy.ndarray, shape (mode,)
        Times in units of tau = 1 / learning rate, strongest mode first. With the rank of A or more, and orthogonal
        starts, those of backpropagation.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, strengths agree, hidden units are too few, the decay is too strong or a start is not
        small, c_j < s_j / 2.

    Notes
    -----
    A limit: reader infinitely fast (Oja's rule on errors, C = <delta delta^T>), mirror perfect, start small. While a
    mode waits the readout already learns from what the first layer holds of it by chance, the term :math:`s_j T_j`;
    what the mode before has left it finishes without the channel. At a finite reader rate the channel turns late,
    once per turn; the balance of tilt and distortion that delays it suggests :math:`\rho^{-1/2}`, and orders of 0.4
    to 0.7 were measured in most pairs of rates between 15 and 120. For s = 3, 2, 1, starts of scale 1e-2 to 1e-5 and
    12 hidden units the times are too small by at most 0.6 (5 %) at a rate of 30; in 3 hidden units by up to 11 %.
    Strengths that are relatively closer than about 1 / ln(1/scale) are outside the limit: the channel goes to and fro
    between them.
    Not derived: argued from the flow, not proved. Checked in ``tests/test_theory_multiplexing.py`` against integrated
    flows, with the order of the delay.

    References
    ----------
    :cite:p:`saxe2013,hanut2025`

    Examples
    --------
    >>> import numpy as np
    >>> A, start = np.diag([3.0, 2.0, 1.0]), 1e-3 * np.eye(3)
    >>> [multiplexed_times(A, start, start, rank).round(1).tolist() for rank in (1, 2, 3)]
    [[2.5, 5.4, 11.0], [2.5, 3.6, 8.7], [2.5, 3.6, 6.9]]
    """
    A = real_array("A", A, ("out", "in"))
    W1 = real_array("W1", W1, ("hidden", A.shape[1]))
    W2 = real_array("W2", W2, (A.shape[0], W1.shape[0]))
    rank = integer("rank", rank, at_least=1)
    left, strengths, right = np.linalg.svd(A, full_matrices=False)
    modes = int(np.sum(strengths > 1e-10 * strengths.max(initial=0.0)))
    s = strengths[:modes]
    if np.any(-np.diff(s) <= 1e-10 * s[:-1]):
        raise ValueError(f"A must have different strengths, got {s}")
    if W1.shape[0] < modes:
        raise ValueError(f"W1 has {W1.shape[0]} hidden units, fewer than the {modes} modes of A")
    decay = real("weight_decay", weight_decay, at_least=0.0, below=float(s.min(initial=np.inf)) / 2)
    free, begun, starts, final = np.eye(W1.shape[0]), np.zeros(modes), np.ones(modes), s - decay
    for j in range(modes):
        if j >= rank:
            crossings = begun[:j] + _logistic_time(s[:j] - s[j], starts[:j], final[:j])
            begun[j] = max(0.0, np.sort(crossings)[j - rank])
        start = free @ ((1 + s[j] * begun[j]) * (W1 @ right[j]) + left[:, j] @ W2) / 2 * np.exp(-decay * begun[j])
        starts[j] = start @ start
        if not 0 < starts[j] < s[j] / 2:
            raise ValueError(f"W1 and W2 must be small but not zero: mode {j} starts at {starts[j]:.3g} of {s[j]:.3g}")
        free = free - np.outer(start, start) / starts[j]
    return begun + _logistic_time(s / 2, starts, final)


def _logistic_time(c: np.ndarray, start: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Return when a logistic of rate 2 final that begins at `start` reaches c."""
    return (np.log(final / start - 1) - np.log(final / c - 1)) / (2 * final)
