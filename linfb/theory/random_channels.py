"""What a randomly drawn channel sees of a task: the laws of the overlap kappa, without simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import integer, real, real_array

TINY = 1e-150  # stands for an edge at zero where its reciprocal is multiplied by zero


def overlap_distribution(rank: int, n_out: int) -> Any:
    r"""Return the law of the share kappa of one direction that a random channel sees.

    .. math::
        \kappa = u^\top P^\top P u \sim \mathrm{Beta}\bigl(\tfrac r2, \tfrac{m - r}2\bigr), \qquad
        \langle\kappa\rangle = r / m

    Parameters
    ----------
    rank : int
        Number r of orthonormal rows of P, from 1 to n_out - 1.
    n_out : int
        Number m of outputs.

    Returns
    -------
    scipy.stats frozen distribution
        With pdf, cdf, ppf, moments and so on.

    Raises
    ------
    TypeError, ValueError
        If the arguments are no integers in range; with rank = n_out the channel sees everything, kappa = 1.

    Notes
    -----
    P uniform over matrices with orthonormal rows, u fixed. Exact at any size: kappa is the squared length of the first
    r coordinates of a uniformly random unit vector. Derived in :doc:`/derivations/overlap_law`, checked in
    ``tests/test_theory_random_channels.py``.

    References
    ----------
    :cite:p:`absil2006`

    Examples
    --------
    >>> float(overlap_distribution(2, 8).mean())
    0.25
    """
    from scipy.stats import beta

    n_out = integer("n_out", n_out, at_least=1)
    rank = integer("rank", rank, at_least=1)
    if rank >= n_out:
        raise ValueError(
            f"rank must be below n_out = {n_out}, got {rank}: such a channel sees everything, kappa = 1 for certain"
        )
    return beta(rank / 2, (n_out - rank) / 2)


def carried_alignment(rank: int, n_out: int, *, dimension: float = 1.0) -> tuple[float, float]:
    r"""Return mean and variance of the squared cosine between an error and what a random channel carries of it.

    .. math::
        \cos^2 = \frac{\langle\|P\delta\|^2\rangle}{\langle\|\delta\|^2\rangle}
        = \frac{\operatorname{tr} MC}{\operatorname{tr} C}, \qquad
        \langle\cos^2\rangle = \frac rm, \qquad
        \operatorname{var} \cos^2 = \frac{2r(m - r)}{m(m - 1)(m + 2)}\Bigl(\frac1D - \frac1m\Bigr)

    with :math:`M = P^\top P`, :math:`C = \langle\delta\delta^\top\rangle` and the dimension of the errors
    :math:`D = (\operatorname{tr} C)^2/\operatorname{tr} C^2`.

    Parameters
    ----------
    rank : int
        Number r of orthonormal rows of P, from 1 to n_out.
    n_out : int
        Number m of outputs, at least 2.
    dimension : float
        D, from 1 (all errors in one direction) to n_out (equal in all); of errors in rows,
        :func:`linfb.observables.measures.participation_ratio`.

    Returns
    -------
    mean, variance : float
        Over channels; the cosine is that of all errors of a batch at once.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number in its range.

    Notes
    -----
    P uniform over matrices with orthonormal rows, errors fixed. Exact at any size. The mean does not depend on the
    errors, so that a random channel aligns no better however few dimensions they have; only the scatter does. For D = 1
    these are the moments of :func:`overlap_distribution`. The same cosine holds one layer below, behind a mirror
    Q = P W, if the weights are isotropic, :math:`WW^\top \propto I`; there independent channels multiply their means.
    Past a residual branch that makes up the share s of the true error's squared norm, and whose channels carry the
    share k of that (the product of their means), the squared cosine is multiplied by 1 - s (1 - k) in wide layers.
    An aligned reader, whose rows span the r leading eigenvectors of C, has the largest cosine of all,
    :math:`\cos^2 = \sum_{i\le r} c_i/\operatorname{tr} C` with the eigenvalues c of C: 1 from the rank of C on.
    Derived in :doc:`/derivations/carried_alignment`, checked in ``tests/test_theory_random_channels.py``.

    References
    ----------
    :cite:p:`absil2006`

    Examples
    --------
    >>> carried_alignment(2, 8)[0], carried_alignment(2, 8, dimension=8)
    (0.25, (0.25, 0.0))
    """
    m, r = integer("n_out", n_out, at_least=2), integer("rank", rank, at_least=1, at_most=n_out)
    D = real("dimension", dimension, at_least=1.0, at_most=m)
    return r / m, 2 * r * (m - r) / (m * (m - 1) * (m + 2)) * (1 / D - 1 / m)


def overlap_density(x: Any, rank_fraction: float, task_fraction: float) -> np.ndarray:
    r"""Return the continuous part of the density of the overlaps of a task with a random channel, for wide outputs.

    .. math::
        \rho(x) = \frac{\sqrt{(x - x_-)(x_+ - x)}}{2\pi\alpha\, x(1 - x)}, \qquad
        x_\pm = \Bigl(\sqrt{\alpha(1 - \beta)} \pm \sqrt{\beta(1 - \alpha)}\Bigr)^2

    Parameters
    ----------
    x : array_like
        Overlaps; the density is zero outside ``(x_-, x_+)``.
    rank_fraction : float
        beta = r / m, in (0, 1].
    task_fraction : float
        alpha = d / m, in (0, 1].

    Returns
    -------
    numpy.ndarray or float
        Density with the shape of `x`. Together with :func:`overlap_atoms` it integrates to one.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a finite number or a fraction is out of range.

    Notes
    -----
    The eigenvalues of U^T P^T P U (d by d, U orthonormal task directions, P uniform with orthonormal rows) follow the
    Jacobi ensemble; this is the limit m to infinity at fixed fractions. Means of smooth functions over the eigenvalues
    deviate from it by O(1 / m). The law is quoted, its mass and moments are verified in
    :doc:`/derivations/overlap_spectrum`; checked against draws in ``tests/test_theory_random_channels.py``.

    References
    ----------
    :cite:p:`wachter1980,collins2005`

    Examples
    --------
    >>> overlap_density([0.1, 0.5, 0.9], 0.5, 0.25)
    array([1.17301607, 1.10265779, 1.17301607])
    """
    x = real_array("x", x)
    alpha, _, low, high = _support(rank_fraction, task_fraction)
    inside = (x > low) & (x < high)
    y = np.where(inside, x, 0.5)
    root = np.sqrt(np.maximum((y - low) * (high - y), 0.0))
    return np.where(inside, root / (2 * np.pi * alpha * y * (1 - y)), 0.0)[()]


def overlap_atoms(rank_fraction: float, task_fraction: float) -> tuple[float, float]:
    r"""Return the shares of a task's directions of which a random channel sees nothing, and everything.

    .. math:: \bigl(1 - \beta/\alpha\bigr)_+, \qquad \bigl(1 - (1 - \beta)/\alpha\bigr)_+

    Parameters
    ----------
    rank_fraction, task_fraction : float
        As in :func:`overlap_density`.

    Returns
    -------
    at_zero, at_one : float
        Masses of the law of the overlaps at 0 and at 1.

    Raises
    ------
    TypeError, ValueError
        As in :func:`overlap_density`.

    Notes
    -----
    Exact at any size with beta = r / m and alpha = d / m: the dimensions of the intersections of generic subspaces.
    Mass and moments in :doc:`/derivations/overlap_spectrum`, checked in ``tests/test_theory_random_channels.py``.

    References
    ----------
    :cite:p:`collins2005`

    Examples
    --------
    >>> overlap_atoms(0.25, 0.5), overlap_atoms(0.75, 0.5)
    ((0.5, 0.0), (0.0, 0.5))
    """
    alpha, beta, _, _ = _support(rank_fraction, task_fraction)
    return max(0.0, 1 - beta / alpha), max(0.0, 1 - (1 - beta) / alpha)


def overlap_cdf(x: Any, rank_fraction: float, task_fraction: float, *, n_out: int | None = None) -> np.ndarray:
    r"""Return the expected share of the overlaps of a task with a random channel that are at most x.

    The density of :func:`overlap_density` integrates to

    .. math::
        \frac{1}{\pi\alpha}\Bigl[\arctan w - \sqrt{x_- x_+}\,\arctan\Bigl(w \sqrt{\tfrac{x_+}{x_-}}\Bigr)
        - \sqrt{(1 - x_-)(1 - x_+)}\,\arctan\Bigl(w \sqrt{\tfrac{1 - x_+}{1 - x_-}}\Bigr)\Bigr], \qquad
        w = \sqrt{\frac{x - x_-}{x_+ - x}},

    to which the atoms are added, and at finite m the first correction,

    .. math::
        \frac1d \Bigl[\tfrac14\, 1(x > x_-) + \tfrac14\, 1(x \ge x_+) - \tfrac1\pi \arctan w\Bigr].

    Parameters
    ----------
    x : array_like
        Overlaps.
    rank_fraction, task_fraction : float
        As in :func:`overlap_density`.
    n_out : int, optional
        Number m of outputs, of which d = task_fraction * m are the task's; None is the limit of many.

    Returns
    -------
    numpy.ndarray or float
        Shares, with the shape of `x`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`overlap_density`.

    Notes
    -----
    The integral is elementary: partial fractions of 1 / (x (1 - x)) and the substitution w. The correction is the next
    order of the loop equation of real Jacobi matrices, and has the form known for sample covariances
    :cite:p:`baisilverstein2004`. With it the mean of a smooth function of the overlaps is right to O(1 / m^2); by
    itself it is no distribution, and within about m^(-2/3) of an edge it does not hold point by point. Derived, for
    means of functions, in :doc:`/derivations/overlap_correction`; checked against exact moments and draws in
    ``tests/test_theory_phase.py``.

    References
    ----------
    :cite:p:`wachter1980,collins2005,baisilverstein2004`

    Examples
    --------
    >>> overlap_cdf([0.0, 0.5, 1.0], 0.5, 0.25)
    array([0. , 0.5, 1. ])
    """
    x = real_array("x", x)
    alpha, _, low, high = _support(rank_fraction, task_fraction)
    at_zero, at_one = overlap_atoms(rank_fraction, task_fraction)
    up, down = np.sqrt(np.clip(x - low, 0.0, None)), np.sqrt(np.clip(high - x, 0.0, None))

    def part(over: float, under: float) -> np.ndarray:
        return np.sqrt(over * under) * np.arctan2(up * np.sqrt(over), down * np.sqrt(under))

    continuous = (part(1.0, 1.0) - part(high, low) - part(1 - high, 1 - low)) / (np.pi * alpha)
    total = np.maximum(continuous, 0.0) + at_zero * (x >= 0) + at_one * (x >= 1)
    if n_out is not None:
        steps = 0.25 * (x > low) + 0.25 * (x >= high) - np.where(x >= high, 0.5, np.arctan2(up, down) / np.pi)
        total = total + steps / (alpha * integer("n_out", n_out, at_least=1))
    return np.where(x >= 1, 1.0, total)[()]


def inverse_overlap_tail(x: Any, rank_fraction: float, task_fraction: float, *, n_out: int | None = None) -> np.ndarray:
    r"""Return the mean of 1 / kappa over a task's modes, those with an overlap up to x counted as zero.

    .. math::
        \int_x^1 \frac{dF(y)}{y} = \frac{1}{2\pi\alpha}\Bigl[\frac{\sqrt{(x - x_-)(x_+ - x)}}{x}
        + (x_- + x_+ - 2x_-x_+)\, h - 2\sqrt{(1 - x_-)(1 - x_+)}\,
        \mathrm{arccot}\Bigl(w\sqrt{\tfrac{1 - x_+}{1 - x_-}}\Bigr)\Bigr], \qquad
        h = \frac{\mathrm{arccot}(w\sqrt{x_+/x_-})}{\sqrt{x_-x_+}},

    plus the atom at one, and at finite m the first correction.

    Parameters
    ----------
    x : array_like
        Overlaps in [0, 1]; at zero the directions that are not seen at all are left out.
    rank_fraction, task_fraction, n_out
        As in :func:`overlap_cdf`.

    Returns
    -------
    numpy.ndarray or float
        With the shape of `x`. At zero (1 - alpha) / (beta - alpha) for alpha < beta, (1 - beta) / (alpha - beta) times
        the share beta / alpha of what is seen for alpha > beta, and in effect infinite for alpha = beta.

    Raises
    ------
    TypeError, ValueError
        As in :func:`overlap_density`.

    Notes
    -----
    Derived in :doc:`/derivations/overlap_tail`, checked against quadrature in ``tests/test_theory_phase.py``. See
    :func:`linfb.theory.expected_loss`, which it is for.

    References
    ----------
    :cite:p:`wachter1980,collins2005,baisilverstein2004`

    Examples
    --------
    >>> inverse_overlap_tail([0.0, 0.5, 1.0], 0.5, 0.25)
    array([3.        , 0.7179..., 0.        ])
    """
    x = real_array("x", x)
    alpha, _, low, high = _support(rank_fraction, task_fraction)
    at_one = overlap_atoms(rank_fraction, task_fraction)[1] * (x < 1)
    y = np.clip(x, low, high)
    up, down = np.sqrt(y - low), np.sqrt(high - y)
    p, q = max(np.sqrt(low), TINY), np.sqrt(high)
    far, near = np.sqrt(1 - low), np.sqrt(1 - high)
    over = np.arctan2(down * p, up * q) / (p * q)  # half the integral of 1 / (y root) from y on
    ratio = np.divide(up * down, y, out=np.zeros(y.shape), where=y > 0)
    total = ratio + (low + high - 2 * low * high) * over - 2 * near * far * np.arctan2(far * down, near * up)
    tail = total / (2 * np.pi * alpha) + at_one
    if n_out is not None:
        steps = 0.25 * (x < low) / max(low, TINY) + 0.25 * (x < high) / high - over / np.pi
        tail = tail + steps / (alpha * integer("n_out", n_out, at_least=1))
    return tail[()]


def overlap_moment(order: int, rank: int, task_rank: int, n_out: int) -> float:
    r"""Return an exact moment of the overlaps of a task with a random channel at finite size.

    .. math::
        \tfrac1d\langle\mathrm{tr}\,K\rangle = \frac rm, \qquad
        \tfrac1d\langle\mathrm{tr}\,K^2\rangle = \frac{r\,[\,m(d + r + 1) - rd - 2\,]}{m(m - 1)(m + 2)}
        \qquad
        \tfrac1d\langle\mathrm{tr}\,K^{-1}\rangle = \frac{m - d - 1}{r - d - 1},
        \qquad K = U^\top P^\top P U .

    Parameters
    ----------
    order : int
        1, 2 or -1.
    rank : int
        Number r of orthonormal rows of P, from 1 to n_out.
    task_rank : int
        Number d of orthonormal directions U, from 1 to n_out.
    n_out : int
        Number m of outputs.

    Returns
    -------
    float
        For order -1 infinite if rank <= task_rank + 1 (and rank < n_out): even for r = d, where no overlap is zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer in range.

    Notes
    -----
    P uniform over matrices with orthonormal rows. Derived in :doc:`/derivations/overlap_moments`, compared with draws
    in ``tests/test_theory_phase.py``.

    References
    ----------
    :cite:p:`collins2005`

    Examples
    --------
    >>> [overlap_moment(order, 6, 2, 8) for order in (1, 2, -1)]
    [0.75, 0.6214..., 1.6666...]
    """
    if integer("order", order) not in (1, 2, -1):
        raise ValueError(f"order must be 1, 2 or -1, got {order!r}")
    m = integer("n_out", n_out, at_least=1)
    r, d = integer("rank", rank, at_least=1), integer("task_rank", task_rank, at_least=1)
    for name, value in (("rank", r), ("task_rank", d)):
        if value > m:
            raise ValueError(f"{name} must be at most n_out = {m}, got {value}")
    if r == m:
        return 1.0
    if order == 1:
        return r / m
    if order == 2:
        return r * (m * (d + r + 1) - r * d - 2) / (m * (m - 1) * (m + 2))
    return (m - d - 1) / (r - d - 1) if r > d + 1 else np.inf


def _support(rank_fraction: float, task_fraction: float) -> tuple[float, float, float, float]:
    """Return alpha, beta and the edges of the continuous part of the Jacobi law."""
    beta = real("rank_fraction", rank_fraction, above=0.0, at_most=1.0)
    alpha = real("task_fraction", task_fraction, above=0.0, at_most=1.0)
    outer, inner = np.sqrt(alpha * (1 - beta)), np.sqrt(beta * (1 - alpha))
    return alpha, beta, float((outer - inner) ** 2), float(min((outer + inner) ** 2, 1.0))
