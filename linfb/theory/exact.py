"""The whole trajectory of a two-layer network behind a fixed channel, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linfb._checks import real, real_array, times_array
from linfb.theory._graded import ROUNDING, exp_or_zero, graded_basis, log_bounded_phi, log_phi, scaled_columns

BALANCE_TOLERANCE = 1e-10
PIVOT = 0.03  # below this share of a column's size Cholesky's digits are not trusted
BLOCK = 16  # times worked on at once: bounds memory


@dataclass(frozen=True)
class _Rows:
    """X1 and P X2 as a sum of rows that grow at one exponential rate each; hidden coordinates reduced to their rank.

    Attributes
    ----------
    sigma : numpy.ndarray, shape (row,)
        Growth rate of a row without decay: +sigma_i, then -sigma_i, then 0.
    rows : numpy.ndarray, shape (row, hidden)
        Start of each row.
    inputs : numpy.ndarray, shape (in, mode + still)
        Input pattern of the pair of rows of a mode, then of each row that stands still.
    readout : numpy.ndarray, shape (out, hidden)
        Start of the second layer.
    teacher : numpy.ndarray, shape (out, mode + still)
        The task's answers to the input patterns.
    """

    sigma: np.ndarray
    rows: np.ndarray
    inputs: np.ndarray
    readout: np.ndarray
    teacher: np.ndarray

    def fold(self, coefficients: np.ndarray) -> np.ndarray:
        """Add the two rows of each mode: (time, row, hidden) to (time, mode + still, hidden)."""
        modes = np.count_nonzero(self.sigma > 0)
        both = coefficients[:, :modes] + coefficients[:, modes : 2 * modes]
        return np.concatenate([both, coefficients[:, 2 * modes :]], axis=1)


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
        Decay of both layers, in units of 1 / tau.

    Returns
    -------
    numpy.ndarray, shape (time, out, in)
        W2 @ W1 on the host.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, times do not increase, or the start is not M-balanced;
        the message names the violation and its size. See :func:`linfb.theory.m_balanced_weights`.

    Notes
    -----
    Assumptions: whitened inputs, equal learning rates and weight decay of both layers, Q equal to P @ W2 at
    time 0 (it then stays so), an M-balanced start. No approximation: the error is rounding, about 1e-13 of the
    map, also at late times, and the cost does not depend on the times' size.

    (W1, P W2) follows backpropagation on the effective teacher PA, for which this is the matrix Riccati solution
    of :cite:p:`fukumizu1998` and :cite:p:`braun2022`; the readout of what the channel does not see is one
    quadrature more. That F is defective (directions with PAv = 0, Av != 0) does not matter, since
    only (W1, P W2) is diagonalised, by the SVD of PA. Directions in which the start is zero up to rounding
    (64 machine epsilons of the whole) are taken to be exactly unexcited; they would escape from rounding alone.
    This is not rare: if W1 has the rank of its inputs, W1 = R (P W2)^T in coordinates of the modes with an orthogonal
    matrix R, and det R = -1 puts the start on the stable manifold of a saddle, so that one mode is never learned.

    ``tests/test_theory_vs_flow.py`` compares with an adaptive integration of the flow and with the end points.

    References
    ----------
    :cite:p:`fukumizu1998,saxe2013,braun2022,hanut2025`

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
    A = real_array("A", A, ("out", "in"))
    W1 = real_array("W1", W1, ("hidden", A.shape[1]))
    W2 = real_array("W2", W2, (A.shape[0], W1.shape[0]))
    P = np.eye(A.shape[0]) if P is None else real_array("P", P, ("rank", A.shape[0]))
    times = times_array("times", times)
    decay = real("weight_decay", weight_decay, at_least=0.0)
    _require_balance(W1, P @ W2)
    maps = np.zeros((len(times), *A.shape))
    maps[times == 0] = W2 @ W1
    modes, late = _decompose(A, W1, W2, P), np.flatnonzero(times > 0)
    if late.size == 0 or modes.rows.size == 0:
        return maps
    start = _rotated(modes, _log_weights(modes, times[-1:], decay)[0])
    for block in np.split(late, range(BLOCK, late.size, BLOCK)):
        maps[block], doubtful = _by_cholesky(*_factors(start, times[block], decay))
        for i in block[doubtful]:
            own = _rotated(modes, _log_weights(modes, times[i : i + 1], decay)[0])
            maps[i] = _by_qr(*_factors(own, times[i : i + 1], decay))[0]
    return maps


def _require_balance(W1: np.ndarray, PW2: np.ndarray) -> None:
    violation = np.abs(W1 @ W1.T - PW2.T @ PW2).max(initial=0.0)
    size = max(np.sum(W1**2), np.sum(PW2**2))
    if violation > BALANCE_TOLERANCE * size:
        raise ValueError(
            "the start is not M-balanced: W1 @ W1.T differs from W2.T @ P.T @ P @ W2 by up to "
            f"{violation:.3g} ({violation / size:.2g} of the squared size of the weights, allowed "
            f"{BALANCE_TOLERANCE:.0e}); W1 and W2 from linfb.theory.m_balanced_weights fulfil it"
        )


def _decompose(A: np.ndarray, W1: np.ndarray, W2: np.ndarray, P: np.ndarray) -> _Rows:
    hidden, strength, _ = np.linalg.svd(W1, full_matrices=False)
    hidden = hidden[:, strength > ROUNDING * strength.max(initial=0.0)]  # the rest never meets W1
    X1, X2 = W1.T @ hidden, W2 @ hidden
    left, sigma, right = np.linalg.svd(P @ A, full_matrices=False)
    seen = sigma > max(P.shape[0], A.shape[1]) * np.finfo(float).eps * sigma.max(initial=0.0)
    left, sigma, right = left[:, seen], sigma[seen], right[seen].T
    x, y = right.T @ X1, left.T @ (P @ X2)
    still = np.concatenate([X1 - right @ x, P @ X2 - left @ y])
    still_basis, still_rows = np.linalg.qr(still)
    rows = np.concatenate([(x + y) / np.sqrt(2), (x - y) / np.sqrt(2), still_rows])
    rows[np.linalg.norm(rows, axis=1) <= ROUNDING * np.linalg.norm(rows)] = 0.0
    inputs = np.concatenate([right / np.sqrt(2), still_basis[: A.shape[1]]], axis=1)
    return _Rows(np.concatenate([sigma, -sigma, np.zeros(len(still_rows))]), rows, inputs, X2, A @ inputs)


def _log_weights(modes: _Rows, times: np.ndarray, decay: float) -> np.ndarray:
    """Log of the root of each row's share of the integral G, shape (time, row)."""
    return 0.5 * log_phi(2 * (modes.sigma - decay), times)


def _rotated(modes: _Rows, log_weight: np.ndarray) -> _Rows:
    """Rotate the hidden units so that they take up the rows from the largest to the smallest."""
    basis, rows = graded_basis(modes.rows, log_weight)
    return replace(modes, rows=rows, readout=modes.readout @ basis)


def _factors(modes: _Rows, times: np.ndarray, decay: float) -> tuple[np.ndarray, ...]:
    """Return S, X1, X2 and the inputs, map = X2 (S^T S)^-1 X1^T inputs^T, hidden columns of size of order one."""
    rate, log_weight = 2 * (modes.sigma - decay), _log_weights(modes, times, decay)
    pairs = np.count_nonzero(modes.sigma > 0)
    growing, log_scale = scaled_columns(modes.rows[:pairs], log_weight[:, :pairs], floor=0.0)
    unit = exp_or_zero(-log_scale)[:, None, :]
    other = np.exp(log_weight[:, pairs:])[:, :, None] * (modes.rows[pairs:] * unit)
    integral = np.concatenate([growing, other], axis=1)
    # relative to its row in G, a row of X1 is exp(rate t) / sqrt(phi(2 rate)) = 1 / sqrt(phi(-2 rate))
    now = exp_or_zero(-0.5 * log_phi(-rate, times))
    lag = np.where(modes.sigma > decay, 0.0, np.maximum(modes.sigma, 0.0) - decay)
    past = np.exp(lag * times[:, None] + log_bounded_phi(modes.sigma, times) - log_bounded_phi(rate, times) / 2)
    X1 = modes.fold(now[:, :, None] * integral)
    X2 = modes.teacher @ modes.fold(past[:, :, None] * integral)
    X2 += modes.readout * (exp_or_zero(-decay * times)[:, None, None] * unit)
    return np.concatenate([integral, unit * np.eye(unit.shape[2])], axis=1), X1, X2, modes.inputs


def _by_cholesky(S: np.ndarray, X1: np.ndarray, X2: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps from the normal equations, and which of them are to be done with more care."""
    gram = S.transpose(0, 2, 1) @ S
    try:
        pivots = np.diagonal(np.linalg.cholesky(gram), axis1=1, axis2=2)
        size = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    except np.linalg.LinAlgError:
        return np.zeros((len(S), X2.shape[1], inputs.shape[0])), np.ones(len(S), dtype=bool)
    maps = (X1 @ np.linalg.solve(gram, X2.transpose(0, 2, 1))).transpose(0, 2, 1) @ inputs.T
    return maps, np.any(pivots < PIVOT * size, axis=1)


def _by_qr(S: np.ndarray, X1: np.ndarray, X2: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(np.linalg.qr(S, mode="r"))
    return (X2 @ inverse) @ (X1 @ inverse).transpose(0, 2, 1) @ inputs.T
