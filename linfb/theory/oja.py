"""How an Oja reader turns: the matrix Oja flow in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import covariance, real, real_array
from linfb.theory._graded import graded_basis, scaled_columns
from linfb.theory.modes import non_negative


def oja_metric(t: Any, C: Any, P0: Any, *, rate: float = 1.0) -> np.ndarray:
    r"""Return the metric M = P^T P of a reader that follows the Oja flow on a constant covariance.

    .. math::
        \dot P = \rho\, P C (I - P^\top P), \qquad
        M(t) = e^{\rho C t} P_0^\top \bigl(P_0\, e^{2\rho C t} P_0^\top\bigr)^{-1} P_0\, e^{\rho C t}

    Parameters
    ----------
    t : array_like
        Time >= 0 in units of tau = 1 / learning rate: a scalar or shape (time,).
    C : array_like, shape (out, out)
        Symmetric positive semi-definite covariance that the reader sees, per sample.
    P0 : array_like, shape (rank, out)
        Reader at t = 0, with orthonormal rows.
    rate : float
        The reader's rate rho relative to that of the weights, > 0.

    Returns
    -------
    numpy.ndarray, shape (time, out, out), or (out, out) for a scalar t
        A projector of rank `rank`, on the leading eigenvectors of C in the end.

    Raises
    ------
    ValueError
        If P0's rows are not orthonormal (to 1e-8), C is not a covariance, a shape does not fit or a time is negative.

    Notes
    -----
    Exact. M(t) projects on the rows of P0 exp(rho C t): these are orthonormalised in the eigenbasis of C with scaled
    exponentials, so that any t is allowed. An eigendirection of which P0 has nothing up to rounding is taken to be
    absent for ever. For label-driven readers C = <y y^T> is constant and this holds throughout learning; C = <delta
    delta^T> changes with the weights and it does not.
    Derived in :doc:`/derivations/oja_flow`, checked in ``tests/test_theory_oja.py`` against the integrated flow.

    References
    ----------
    :cite:p:`oja1982,williams1985,oja1989`

    Examples
    --------
    >>> import numpy as np
    >>> P0 = np.array([[0.6, 0.8]])
    >>> oja_metric(0.0, np.diag([2.0, 1.0]), P0)
    array([[0.36, 0.48],
           [0.48, 0.64]])
    >>> oja_metric([1e4], np.diag([2.0, 1.0]), P0)
    array([[[1., 0.],
            [0., 0.]]])
    """
    t = non_negative("t", t)
    if t.ndim > 1:
        raise ValueError(f"t has shape {t.shape}, expected a scalar or (time,)")
    P0 = real_array("P0", P0, ("rank", "out"))
    rank, n_out = P0.shape
    C, rate = covariance("C", C, n_out), real("rate", rate, above=0.0)
    deviation = np.abs(P0 @ P0.T - np.eye(rank)).max(initial=0.0)
    if deviation > 1e-8:
        raise ValueError(
            f"P0 (shape {P0.shape}) must have orthonormal rows; P0 @ P0.T deviates from the identity by {deviation:.3g}"
        )
    values, vectors = np.linalg.eigh(C)
    start = vectors.T @ P0.T
    metrics = [_projector(start, rate * values * time, vectors) for time in np.atleast_1d(t)]
    return np.array(metrics).reshape(*t.shape, n_out, n_out)


def _projector(start: np.ndarray, exponent: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Project on the columns of exp(diag(exponent)) start, in the basis of the given vectors."""
    _, triangular = graded_basis(start, exponent)
    scaled, _ = scaled_columns(triangular, exponent[None])
    columns = vectors @ np.linalg.qr(scaled[0])[0]
    return columns @ columns.T
