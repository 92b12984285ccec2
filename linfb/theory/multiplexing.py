"""How long everything takes when a channel that is too narrow visits one group of modes after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import integer, real_array


def multiplexed_times(A: Any, W1: Any, W2: Any, rank: int) -> np.ndarray:
    r"""Return when every mode is half learned if a fast error-driven reader with a fast mirror visits them in turn.

    The channel reads the r largest errors that are left. Mode j waits until fewer than r of the stronger modes have an
    error above :math:`s_j`, and is then learned as if alone:

    .. math::
        t_j = T_j + \frac{\ln(s_j / c_j - 1)}{2 s_j}, \qquad
        c_j = \tfrac14 \bigl\| (1 + s_j T_j)\, W_1 v_j + W_2^\top u_j \bigr\|_\perp^2 ,

    where :math:`\perp` takes off the hidden directions of the stronger modes, and mode i has the error :math:`s_j` at
    :math:`T_i + [\ln(s_i / c_i - 1) + \ln(s_i / s_j - 1)] / (2 s_i)`. For small starts of scale :math:`\epsilon`

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

    Returns
    -------
    numpy.ndarray, shape (mode,)
        Times in units of tau = 1 / learning rate, strongest mode first. With the rank of A or more, and orthogonal
        starts, those of backpropagation.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, strengths agree, hidden units are too few or a start is not small, c_j < s_j / 2.

    Notes
    -----
    A limit: reader infinitely fast (Oja's rule on errors, C = <delta delta^T>), mirror perfect, no weight decay, start
    small. While a mode waits the readout already learns from what the first layer holds of it by chance, the term
    :math:`s_j T_j`; what the mode before has left it finishes without the channel. At a finite reader rate the channel
    turns late, once per turn; the balance of tilt and distortion that delays it suggests :math:`\rho^{-1/2}`, and
    orders of 0.4 to 0.7 were measured between rates of 15 and 120. For s = 3, 2, 1, starts of scale 1e-2 to 1e-5 and 12
    hidden units the times are too small by at most 0.6 (5 %) at a rate of 30. Strengths that are relatively closer than
    about 1 / ln(1/scale) are outside the limit: the channel goes to and fro between them.
    Not proved; checked in ``tests/test_theory_multiplexing.py`` against integrated flows, with the order of the delay.

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
    free, begun, delays = np.eye(W1.shape[0]), np.zeros(modes), np.zeros(modes)
    for j in range(modes):
        if j >= rank:
            crossings = begun[:j] + delays[:j] + np.log(s[:j] / s[j] - 1) / (2 * s[:j])
            begun[j] = max(0.0, np.sort(crossings)[j - rank])
        start = free @ ((1 + s[j] * begun[j]) * (W1 @ right[j]) + left[:, j] @ W2) / 2
        strength = start @ start
        if not 0 < strength < s[j] / 2:
            raise ValueError(f"W1 and W2 must be small but not zero: mode {j} starts at {strength:.3g} of {s[j]:.3g}")
        delays[j] = np.log(s[j] / strength - 1) / (2 * s[j])
        free = free - np.outer(start, start) / strength
    return begun + delays
