"""The whole trajectory of a two-layer network behind a fixed channel, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf

from linfb._checks import real, real_array, times_array
from linfb.theory._graded import ROUNDING, exp_or_zero, graded_basis, log_bounded_phi, log_phi, scaled_columns

BALANCE_TOLERANCE = 1e-10
PIVOT = 0.03  # below this share of a column's size Cholesky's digits are not trusted
BLOCK = 16  # times worked on at once: bounds memory


@dataclass(frozen=True)
class _Rows:
    """X1 and P X2 as a sum of rows that grow at one exponential rate each; hidden coordinates reduced to their rank.

    Rows that neither grow nor shrink share one function of time, so that they enter by their products with each other.

    Attributes
    ----------
    rates : numpy.ndarray, shape (2 mode,)
        Growth rate of a row without decay: that of each mode, then its negative.
    rows : numpy.ndarray, shape (2 mode, hidden)
        Start of each row.
    share : numpy.ndarray, shape (2 mode,)
        What of a row belongs to X1.
    still : numpy.ndarray, shape (still, hidden)
        The rows at rest.
    inputs : numpy.ndarray, shape (in, mode)
        Input pattern of the pair of rows of a mode.
    still_inputs : numpy.ndarray, shape (in, hidden)
        The rows at rest, as far as they belong to X1, in input coordinates.
    readout : numpy.ndarray, shape (out, hidden)
        Start of the second layer.
    teacher : numpy.ndarray, shape (out, in)
        The task, A.
    imbalance : float
    """

    rates: np.ndarray
    rows: np.ndarray
    share: np.ndarray
    still: np.ndarray
    inputs: np.ndarray
    still_inputs: np.ndarray
    readout: np.ndarray
    teacher: np.ndarray
    imbalance: float

    @cached_property
    def patterns(self) -> np.ndarray:
        """All input patterns, shape (mode + hidden, in)."""
        return np.concatenate([self.inputs, self.still_inputs], axis=1).T

    def rotated(self, time: float, decay: float) -> _Rows:
        """Rotate the hidden units so that they take up the rows from the largest at `time` to the smallest."""
        rates = np.concatenate([self.rates, np.zeros(len(self.still))])
        log_weight = 0.5 * log_phi(2 * (rates - decay), np.array([time]))[0]
        basis, rows = graded_basis(np.concatenate([self.rows, self.still]), log_weight)
        return replace(
            self,
            rows=rows[: len(self.rows)],
            still=rows[len(self.rows) :],
            still_inputs=self.still_inputs @ basis,
            readout=self.readout @ basis,
        )


def exact_map(A: Any, W1: Any, W2: Any, times: Any, *, P: Any = None, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return the map of a two-layer linear network at all `times`, exactly, for fixed aligned feedback Q = P W2.

    With :math:`M = P^\top P` the flow :math:`\dot W_1 = W_2^\top M E - \lambda W_1`,
    :math:`\dot W_2 = E W_1^\top - \lambda W_2`, :math:`E = A - W_2 W_1`, from a start with
    :math:`W_1 W_1^\top = W_2^\top M W_2` is solved by

    .. math::
        W_2 W_1(t) = X_2(t) \Bigl(I + 2\int_0^t X_1(s)^\top X_1(s)\,ds\Bigr)^{-1} X_1(t)^\top, \qquad
        \begin{pmatrix} X_1 \\ X_2 \end{pmatrix}(t) =
        \exp\Bigl[t \begin{pmatrix} -\lambda I & A^\top M \\ A & -\lambda I \end{pmatrix}\Bigr]
        \begin{pmatrix} W_1(0)^\top \\ W_2(0) \end{pmatrix} .

    From a start with :math:`W_1 W_1^\top = W_2^\top M W_2 + \mu I`, an imbalance that learning without decay conserves,

    .. math::
        W_2 W_1(t) = X_2 \Bigl(I + \int_0^t (X_1^\top X_1 + X_2^\top M X_2)\,ds\Bigr)^{-1} X_1^\top, \qquad
        \begin{pmatrix} X_1 \\ X_2 \end{pmatrix}(t) =
        \exp\Bigl[t \begin{pmatrix} \mu I / 2 & A^\top M \\ A & -\mu I / 2 \end{pmatrix}\Bigr]
        \begin{pmatrix} W_1(0)^\top \\ W_2(0) \end{pmatrix} .

    Parameters
    ----------
    A : array_like, shape (out, in)
        Input-output correlation; inputs are whitened.
    W1 : array_like, shape (hidden, in)
        First layer at time 0.
    W2 : array_like, shape (out, hidden)
        Second layer at time 0.
    times : array_like, shape (time,)
        Increasing times >= 0, in units of tau = 1 / learning rate.
    P : array_like, shape (rank, out), optional
        The reader of the channel; any matrix, its scale counts. None is backpropagation, P = I.
    weight_decay : float
        Decay of both layers, in units of 1 / tau; zero if the start has an imbalance, which would decay too.

    Returns
    -------
    numpy.ndarray, shape (time, out, in)
        W2 @ W1 on the host.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, times do not increase, or the start is neither M-balanced nor
        so up to a multiple of the identity; the message names the violation and its size. See
        :func:`linfb.theory.m_balanced_weights`, and :func:`linfb.theory.small_start_map` for small starts.

    Notes
    -----
    Assumptions: whitened inputs, equal learning rates and weight decay of both layers, Q equal to P @ W2 at
    time 0 (it then stays so), an M-balanced start or one with an imbalance mu. No approximation: the error is
    rounding, about 1e-13 of the map, also at late times, and the cost does not depend on the times' size.

    (W1, P W2) follows backpropagation on the effective teacher PA, for which this is the matrix Riccati solution
    of :cite:p:`fukumizu1998` and :cite:p:`braun2022`, and with an imbalance that of :cite:p:`domine2024`, derived anew
    in :doc:`/derivations/unbalanced_trajectory`: modes then grow at :math:`\sqrt{\sigma^2 + \mu^2/4}`, and what is out
    of the task's reach at :math:`|\mu|/2`. With mu > 0 there are at most as many hidden units as inputs, with mu < 0 as
    the rank of P, since W1, or P W2, must have their full rank. The readout of what the channel does not see is one
    quadrature more. That F is defective (directions with PAv = 0, Av != 0) does not matter, since only (W1, P W2) is
    diagonalised, by the SVD of PA. Directions in which the start is zero up to rounding (64 machine epsilons of the
    whole) are taken to be exactly unexcited; they would escape from rounding alone. This is not rare: if W1 has the
    rank of its inputs, W1 = R (P W2)^T in coordinates of the modes with an orthogonal matrix R, and det R = -1 puts the
    start on the stable manifold of a saddle, so that one mode is never learned.

    Derived in :doc:`/derivations/effective_teacher`, :doc:`/derivations/passive_readout` and
    :doc:`/derivations/exact_trajectory` (:doc:`/derivations/riccati` for backpropagation); checked in
    ``tests/test_theory_vs_flow.py`` against an adaptive integration of the flow and against the end points.

    References
    ----------
    :cite:p:`fukumizu1998,saxe2013,braun2022,domine2024,hanut2025`

    Examples
    --------
    A single mode seen through a channel that reads half of its output direction (kappa = 1/2):

    >>> import numpy as np
    >>> from linfb.theory import mode_strength
    >>> A, P = np.array([[2.0], [0.0]]), np.array([[1.0, 1.0]]) / np.sqrt(2)
    >>> W2 = np.array([[0.1], [0.0]])
    >>> W1 = np.sqrt(0.5) * np.array([[0.1]])
    >>> exact_map(A, W1, W2, [0.0, 1.0, 10.0], P=P)[:, 0, 0]
    array([0.00707107, 0.11325975, 2.        ])
    >>> mode_strength(np.array([0.0, 1.0, 10.0]), 2.0, 0.01 * np.sqrt(0.5), kappa=0.5)
    array([0.00707107, 0.11325975, 2.        ])
    """
    A, W1, W2, P = checked_start(A, W1, W2, P)
    times = times_array("times", times)
    decay = real("weight_decay", weight_decay, at_least=0.0)
    imbalance = _imbalance(W1, P @ W2)
    if imbalance and decay:
        raise ValueError(f"weight_decay must be 0, got {decay}: the start is M-balanced up to {imbalance:.3g} I only")
    larger = W1 if imbalance >= 0 else (P @ W2).T  # hidden units out of its range never meet W1
    return riccati_map(A, W1, W2, P, times, decay, imbalance, larger)


def checked_start(A: Any, W1: Any, W2: Any, P: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return checked arrays, P = I for None."""
    A = real_array("A", A, ("out", "in"))
    W1 = real_array("W1", W1, ("hidden", A.shape[1]))
    W2 = real_array("W2", W2, (A.shape[0], W1.shape[0]))
    return A, W1, W2, np.eye(A.shape[0]) if P is None else real_array("P", P, ("rank", A.shape[0]))


def riccati_map(
    A: np.ndarray, W1: np.ndarray, W2: np.ndarray, P: np.ndarray, times: np.ndarray, decay: float, imbalance: float,
    active: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the formula of :func:`exact_map` for hidden units in the range of `active`, from whatever start."""
    maps, first = np.empty((len(times), *A.shape)), np.count_nonzero(times == 0)
    maps[:first] = W2 @ W1
    modes = _decompose(A, W1, W2, P, imbalance, active)
    start = modes.rotated(times[-1], decay) if first < len(times) else modes
    for begin in range(first, len(times), BLOCK):
        block = slice(begin, begin + BLOCK)
        answers, doubtful = _answers(start, times[block], decay, _by_cholesky)
        np.matmul(answers, start.patterns, out=maps[block])
        for i in begin + np.flatnonzero(doubtful):
            own = modes.rotated(times[i], decay)
            maps[i] = _answers(own, times[i : i + 1], decay, _by_qr)[0][0] @ own.patterns
    return maps


def _imbalance(W1: np.ndarray, PW2: np.ndarray) -> float:
    """Return mu of W1 W1^T - (P W2)^T P W2 = mu I, zero up to the tolerance, or raise."""
    difference, size = W1 @ W1.T - PW2.T @ PW2, max(np.sum(W1**2), np.sum(PW2**2))
    mean = float(np.trace(difference)) / max(1, len(W1))
    imbalance = mean if abs(mean) > BALANCE_TOLERANCE * size else 0.0
    if np.abs(difference - imbalance * np.eye(len(W1))).max(initial=0.0) > BALANCE_TOLERANCE * size:
        violation = np.abs(difference).max()
        raise ValueError(
            "the start is not M-balanced, not even up to a multiple of the identity: W1 @ W1.T differs from "
            f"W2.T @ P.T @ P @ W2 by up to {violation:.3g} ({violation / size:.2g} of the squared size of the weights, "
            f"allowed {BALANCE_TOLERANCE:.0e}); W1 and W2 from linfb.theory.m_balanced_weights fulfil it"
        )
    return imbalance


def seen_modes(A: np.ndarray, P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the singular vectors and values of PA, U, sigma and V, without those that are zero up to rounding."""
    left, sigma, right = np.linalg.svd(P @ A, full_matrices=False)
    seen = sigma > max(P.shape[0], A.shape[1]) * np.finfo(float).eps * sigma.max(initial=0.0)
    return left[:, seen], sigma[seen], right[seen].T


def _decompose(
    A: np.ndarray, W1: np.ndarray, W2: np.ndarray, P: np.ndarray, imbalance: float, active: np.ndarray
) -> _Rows:
    hidden, strength, _ = np.linalg.svd(active, full_matrices=False)
    hidden = hidden[:, strength > ROUNDING * strength.max(initial=0.0)]
    X1, X2 = W1.T @ hidden, W2 @ hidden
    left, sigma, right = seen_modes(A, P)
    x, y = right.T @ X1, left.T @ (P @ X2)
    still_inputs, still_outputs = X1 - right @ x, P @ X2 - left @ y
    if imbalance:  # what is out of the task's reach moves too: further modes, with singular value zero
        more, into = np.linalg.qr(still_inputs)
        onto = np.linalg.qr(still_outputs)[1]
        count = max(len(into), len(onto))
        x, y = (np.concatenate([z, _taller(part, count)]) for z, part in ((x, into), (y, onto)))
        right, sigma = np.concatenate([right, _taller(more.T, count).T], axis=1), np.append(sigma, np.zeros(count))
        still_inputs, still_outputs = np.zeros_like(still_inputs), np.zeros_like(still_outputs)
    still = np.linalg.qr(np.concatenate([still_inputs, still_outputs]), mode="r")
    pace = np.hypot(sigma, imbalance / 2)
    most = np.sqrt(0.5 + np.divide(abs(imbalance) / 4, pace, out=np.zeros(pace.shape), where=pace > 0))
    least = np.divide(sigma / 2, pace * most, out=np.ones(pace.shape), where=pace > 0)
    into, onto = (most, least) if imbalance >= 0 else (least, most)
    rows = np.concatenate([into[:, None] * x + onto[:, None] * y, onto[:, None] * x - into[:, None] * y, still])
    rows[np.linalg.norm(rows, axis=1) <= ROUNDING * np.linalg.norm(rows)] = 0.0
    moving, rates, share = 2 * len(sigma), np.append(pace, -pace), np.append(into, onto)
    return _Rows(rates, rows[:moving], share, rows[moving:], right, still_inputs, X2, A, imbalance)


def _taller(rows: np.ndarray, count: int) -> np.ndarray:
    """Return rows with zeros below, `count` in all."""
    return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]))])


def _answers(modes: _Rows, times: np.ndarray, decay: float, weigh: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Return X2 (S^T S)^-1 X1^T in coordinates of the input patterns at all times, and where that is doubtful.

    S^T S is the matrix that is inverted in :func:`exact_map`, its hidden columns scaled to size of order one.
    """
    rate, pairs, tilt = 2 * (modes.rates - decay), modes.inputs.shape[1], modes.imbalance / 2
    log_weight = 0.5 * log_phi(rate, times)  # of the root of a row's share of the integral
    growing, log_scale = scaled_columns(modes.rows[:pairs], log_weight[:, :pairs], floor=0.0)
    unit = exp_or_zero(-log_scale)[:, None, :]
    shrinking = np.exp(log_weight[:, pairs:])[:, :, None] * (modes.rows[pairs:] * unit)
    moving = np.concatenate([growing, shrinking], axis=1)
    resting = np.exp(0.5 * log_phi(np.array([-2 * decay]), times))[:, :, None] * unit
    # relative to its row in S, one of X1 is exp(rate t) / sqrt(phi(2 rate)) = 1 / sqrt(phi(-2 rate))
    now = modes.share * exp_or_zero(-0.5 * log_phi(-rate, times))
    X1 = _pairs(now[:, :, None] * moving)
    # X2 forgets its start at the rate tilt + decay and integrates A X1 since
    pace, share = modes.rates[:pairs], modes.share[:pairs]
    past = log_bounded_phi(pace + tilt, times) - log_bounded_phi(rate[:pairs], times) / 2
    past = share * np.exp(np.minimum(pace - decay, 0.0) * times[:, None] + past)
    gone = modes.share[pairs:] * np.exp(log_phi(tilt - pace, times))
    faded = exp_or_zero(-(tilt + decay) * times[:, None] - log_scale)[:, None, :]
    X2 = (modes.teacher @ modes.inputs) @ (past[:, :, None] * growing + gone[:, :, None] * modes.rows[pairs:] * faded)
    X2 += (modes.readout + times[:, None, None] * (modes.teacher @ modes.still_inputs)) * faded
    answers, doubtful = weigh(moving, modes.still, resting, unit, X2)
    return np.concatenate([answers @ X1.transpose(0, 2, 1), answers * faded], axis=2), doubtful


def _pairs(rows: np.ndarray) -> np.ndarray:
    """Add the two rows of each mode: (time, 2 mode, hidden) to (time, mode, hidden)."""
    modes = rows.shape[1] // 2
    return rows[:, :modes] + rows[:, modes:]


def _by_cholesky(
    moving: np.ndarray, still: np.ndarray, resting: np.ndarray, unit: np.ndarray, X2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return X2 (S^T S)^-1 from the normal equations, and at which times it is to be done with more care."""
    gram = moving.transpose(0, 2, 1) @ moving
    gram += (still.T @ still) * (resting * resting.transpose(0, 2, 1))
    np.einsum("tii->ti", gram)[...] += unit[:, 0] ** 2
    size = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    answers, doubtful = np.zeros(X2.shape), np.ones(len(X2), dtype=bool)
    for i, product in enumerate(gram):
        factor, failed = dpotrf(product.T, lower=True, clean=False, overwrite_a=True)
        if not failed:  # two triangular systems: LAPACK's solver of both is slower on small matrices
            half = dtrsm(1.0, factor, X2[i].T, lower=True)
            answers[i] = dtrsm(1.0, factor, half, lower=True, trans_a=True, overwrite_b=True).T
            doubtful[i] = np.any(np.diagonal(factor) < PIVOT * size[i])
    return answers, doubtful


def _by_qr(
    moving: np.ndarray, still: np.ndarray, resting: np.ndarray, unit: np.ndarray, X2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return X2 (S^T S)^-1 from the triangular factor of S."""
    S = np.concatenate([moving, still * resting, np.eye(unit.shape[2]) * unit], axis=1)
    inverse = np.linalg.inv(np.linalg.qr(S, mode="r"))
    return X2 @ inverse @ inverse.transpose(0, 2, 1), np.zeros(len(X2), dtype=bool)
