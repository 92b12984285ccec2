"""Matrices whose rows grow at very different exponential rates, handled without overflow or loss of digits.

Both the Riccati solution and the Oja flow are functions of a row space of exp(t diag(rates)) Z. Written in a basis
of its columns in which row after row brings in one new column, from the largest row to the smallest, the columns
can be scaled to size one and are then well conditioned, however large t is.
"""

from __future__ import annotations

import numpy as np
from scipy.special import exprel

ROUNDING = 64 * np.finfo(float).eps
"""Components smaller than this share of the whole are taken for rounding, not for a small start that could grow."""


def log_phi(rate: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return log of the integral of exp(rate * s) over s from 0 to t > 0, shape (time, rate)."""
    return np.maximum(rate, 0.0) * t[:, None] + log_bounded_phi(rate, t)


def log_bounded_phi(rate: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return :func:`log_phi` without its growth, max(rate, 0) * t: differences of large logarithms cost digits."""
    return np.log(t)[:, None] + np.log(exprel(-np.abs(rate) * t[:, None]))


def exp_or_zero(exponent: np.ndarray) -> np.ndarray:
    """Return exp(exponent), zero below 1e-43: products of such numbers are subnormal, which slows arithmetic down."""
    return np.exp(exponent, out=np.zeros(exponent.shape), where=exponent > -100.0)


def graded_basis(rows: np.ndarray, log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate columns so that the rows, from the largest ``exp(log_weight) * |row|`` on, become lower triangular.

    Parameters
    ----------
    rows : numpy.ndarray, shape (row, column)
    log_weight : numpy.ndarray, shape (row,)

    Returns
    -------
    basis : numpy.ndarray, shape (column, column)
        An orthogonal matrix.
    rotated : numpy.ndarray, shape (row, column)
        ``rows @ basis``, with exact zeros where a row depends on larger ones up to rounding.
    """
    n_columns = rows.shape[1]
    rest, floor = rows.copy(), ROUNDING**2 * _squares(rows)
    basis, rotated = np.zeros((n_columns, n_columns)), np.zeros(rows.shape)
    for j in range(n_columns):
        size = _squares(rest)
        rest[size <= floor] = 0.0
        with np.errstate(divide="ignore"):
            pivot = np.argmax(np.where(size > floor, 0.5 * np.log(size) + log_weight, -np.inf))
        if not np.any(rest[pivot]):
            basis[:, j:] = np.linalg.svd(basis[:, :j].T, full_matrices=True)[2][j:].T
            break
        vector = rest[pivot] - basis[:, :j] @ (basis[:, :j].T @ rest[pivot])
        basis[:, j] = vector / np.linalg.norm(vector)
        rotated[:, j] = rest @ basis[:, j]
        rest -= rotated[:, j, None] * basis[:, j]
        rest[pivot] = 0.0
    return basis, rotated


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", rows, rows)


def scaled_columns(
    rotated: np.ndarray, log_weight: np.ndarray, floor: float = -np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``exp(log_weight) * rotated`` with each column divided by its largest entry, and the log of that divisor.

    Parameters
    ----------
    rotated : numpy.ndarray, shape (row, column)
    log_weight : numpy.ndarray, shape (time, row)
    floor : float
        Lower bound of the logarithm of the divisor.

    Returns
    -------
    scaled : numpy.ndarray, shape (time, row, column)
    log_scale : numpy.ndarray, shape (time, column)
    """
    with np.errstate(divide="ignore"):
        log_entry = log_weight[:, :, None] + np.log(np.abs(rotated))
    log_scale = np.maximum(log_entry.max(axis=1, initial=-np.inf), floor)
    log_entry -= log_scale[:, None, :]
    return np.sign(rotated) * exp_or_zero(log_entry), log_scale
