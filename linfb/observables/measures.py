"""Measures of matrices, as pure functions of arrays of any library, with any leading axes."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from linfb.backend import namespace, transpose

__all__ = ["captured_energy", "cosine", "invariant", "participation_ratio", "row_projector", "subspace_overlap"]


def cosine(a: Float[Any, "*run rows columns"], b: Float[Any, "*run rows columns"]) -> Any:
    """Return the cosine of the angle between matrices under the Frobenius product; NaN where one vanishes.

    Examples
    --------
    >>> import numpy as np
    >>> float(cosine(np.eye(2), np.ones((2, 2))).round(4))
    0.7071
    """
    xp = namespace(a, b)
    product = xp.sum(a * b, axis=(-2, -1))
    norms = xp.sqrt(xp.sum(a * a, axis=(-2, -1))) * xp.sqrt(xp.sum(b * b, axis=(-2, -1)))
    return _ratio(xp, product, norms)


def participation_ratio(matrix: Float[Any, "*run rows columns"]) -> Any:
    r"""Return the effective rank :math:`(\sum_i s_i^2)^2/\sum_i s_i^4` from the singular values s; NaN for zero.

    Computed from the smaller Gram matrix of the matrix over its largest entry, without a singular value
    decomposition; fourth powers neither overflow nor vanish.

    Examples
    --------
    >>> import numpy as np
    >>> float(participation_ratio(np.diag([2.0, 2.0, 0.0])))
    2.0
    """
    xp = namespace(matrix)
    largest = xp.max(xp.abs(matrix), axis=(-2, -1), keepdims=True)
    matrix = matrix / xp.where(largest > 0, largest, xp.ones_like(largest))
    tall = matrix.shape[-2] > matrix.shape[-1]
    gram = transpose(matrix) @ matrix if tall else matrix @ transpose(matrix)
    total = xp.linalg.trace(gram)
    return _ratio(xp, total * total, xp.sum(gram * gram, axis=(-2, -1)))


def row_projector(P: Float[Any, "*run rank out"], *, tolerance: float = 1e-10) -> Float[Any, "*run out out"]:
    """Return the orthogonal projector on the row space of P; zero rows (padding) and lost rank do not count.

    Parameters
    ----------
    P : array, shape (..., rank, out)
    tolerance : float
        Singular values below this share of the largest count as zero.
    """
    xp = namespace(P)
    _, values, rows = xp.linalg.svd(P, full_matrices=False)
    largest = xp.max(values, axis=-1, keepdims=True)
    kept = xp.astype((values > tolerance * largest) & (values > 0), P.dtype)
    return transpose(rows * kept[..., None]) @ rows


def captured_energy(P: Float[Any, "*run rank out"], delta: Float[Any, "*run sample out"]) -> Any:
    r"""Return the share :math:`\|\Pi\delta\|^2/\|\delta\|^2` of the error in the row space of P; NaN without error."""
    xp = namespace(P, delta)
    seen = delta @ row_projector(P)
    return _ratio(xp, xp.sum(seen * seen, axis=(-2, -1)), xp.sum(delta * delta, axis=(-2, -1)))


def subspace_overlap(P: Float[Any, "*run rank out"], basis: Any) -> Any:
    r"""Return the mean squared cosine between the row space of P and orthonormal columns: :math:`\|\Pi U\|^2/r`.

    r is the smaller of the rank of P and the number of columns, so that 1 means that one space contains the other.
    """
    xp = namespace(P, basis)
    projector = row_projector(P)
    rank = xp.clip(xp.linalg.trace(projector), 1.0, float(basis.shape[-1]))
    return xp.sum((projector @ basis) ** 2, axis=(-2, -1)) / rank


def invariant(W_below: Any, W_above: Any, *, P: Any = None, Q: Any = None, B: Any = None) -> Any:
    r"""Return the matrix that learning conserves at zero weight decay, shape (..., hidden, hidden).

    With constant feedback B, :math:`W_1W_1^\top - B^\top W_2 - (B^\top W_2)^\top`; with a kernel Q that learns like
    the weights seen through P (and mismatch D = Q - P W_2), :math:`W_1W_1^\top - W_2^\top MW_2 - D^\top PW_2 -
    (D^\top PW_2)^\top`, :math:`M = P^\top P`. Q = None stands for the perfect mirror, P = None for the identity.

    Parameters
    ----------
    W_below : array, shape (..., hidden, in)
    W_above : array, shape (..., out, hidden)
    P, Q : array, shapes (..., rank, out) and (..., rank, hidden), optional
    B : array, shape (..., out, hidden), optional
        Constant feedback in code shapes, in place of P and Q.
    """
    if B is not None:
        cross = transpose(B) @ W_above
        return W_below @ transpose(W_below) - cross - transpose(cross)
    seen = W_above if P is None else P @ W_above
    gram = transpose(seen) @ seen
    if Q is not None:
        cross = transpose(Q - seen) @ seen
        gram = gram + cross + transpose(cross)
    return W_below @ transpose(W_below) - gram


def _ratio(xp: Any, numerator: Any, denominator: Any) -> Any:
    safe = xp.where(denominator > 0, denominator, xp.ones_like(denominator))
    return xp.where(denominator > 0, numerator / safe, xp.full_like(denominator, xp.nan))
