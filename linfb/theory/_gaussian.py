"""Averages of activations over Gaussian local fields, in closed form.

The error function is erf(u / sqrt 2), the engine's :class:`linfb.engine.layers.Erf`. Its slope is a Gaussian, and a
Gaussian weight on one field only tilts the law of the others: all averages with slopes follow from the one without.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Average = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def erf_product(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return <phi(u1) phi(u2)> of erf."""
    return 2 / np.pi * np.arcsin(c12 / np.sqrt((1 + c11) * (1 + c22)))


def erf_slopes(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return <phi'(u1) phi'(u2)> of erf."""
    return 2 / np.pi / np.sqrt((1 + c11) * (1 + c22) - c12**2)


def relu_product(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return <phi(u1) phi(u2)> of ReLU."""
    area = _area(c11, c12, c22)
    return (area + (np.pi - np.arctan2(area, c12)) * c12) / (2 * np.pi)


def relu_slopes(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return <phi'(u1) phi'(u2)> of ReLU."""
    return (np.pi - np.arctan2(_area(c11, c12, c22), c12)) / (2 * np.pi)


def _area(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return sqrt(c11 c22) times the sine of the angle between the two fields."""
    return np.sqrt(np.maximum(c11 * c22 - c12**2, 0.0))


def linear_product(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return <u1 u2>."""
    return np.broadcast_to(c12, np.broadcast_shapes(np.shape(c11), np.shape(c12), np.shape(c22)))


def linear_slopes(c11: np.ndarray, c12: np.ndarray, c22: np.ndarray) -> np.ndarray:
    """Return 1."""
    return np.ones(np.broadcast_shapes(np.shape(c11), np.shape(c12), np.shape(c22)))


PAIRS: dict[str, tuple[Average, Average]] = {
    "linear": (linear_product, linear_slopes),
    "relu": (relu_product, relu_slopes),
    "erf": (erf_product, erf_slopes),
}
"""For each activation <phi phi> and <phi' phi'>, as functions of the covariances of the two fields."""


def erf_moments(C: np.ndarray, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""Return the averages over Gaussian fields u of covariance C that online learning of erf units needs.

    .. math::
        \langle\phi_k\phi_l\rangle, \quad \langle\phi'_i u_j \phi_k\rangle, \quad \langle\phi'_i\phi'_j\rangle, \quad
        \langle\phi'_i\phi'_j\phi_k\phi_l\rangle

    Parameters
    ----------
    C : numpy.ndarray, shape (field, field)
    hidden : int
        How many fields, the first ones, are those of the student: i, and j of the last two, are among them.

    Returns
    -------
    tuple of numpy.ndarray
        Of shapes (field, field), (hidden, field, field), (hidden, hidden) and (hidden, hidden, field, field).
    """
    own, variance = C[:hidden], np.diag(C)
    one = C - own[:, :, None] * own[:, None, :] / (1 + variance[:hidden, None, None])  # tilted by phi'_i
    height = 1 / (1 + variance[:hidden])
    spread = 1 + np.diagonal(one, axis1=1, axis2=2)
    single = 2 / np.pi * one * np.sqrt(height[:, None, None] / spread[:, None, :])
    second = one[:, :hidden]  # what field j of the student is correlated with, once tilted by phi'_i
    spread = spread[:, :hidden]
    two = one[:, None] - second[..., :, None] * second[..., None, :] / spread[..., None, None]
    both = np.diagonal(two, axis1=2, axis2=3)
    slopes = 2 / np.pi * np.sqrt(height[:, None] / spread)
    product = erf_product(variance[:, None], C, variance)
    return product, single, slopes, slopes[..., None, None] * erf_product(both[..., :, None], two, both[..., None, :])


def linear_moments(C: np.ndarray, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the averages of :func:`erf_moments` for linear units."""
    shape = (hidden, *C.shape)
    return C, np.broadcast_to(C, shape), np.ones((hidden, hidden)), np.broadcast_to(C, (hidden, *shape))


MOMENTS = {"erf": erf_moments, "linear": linear_moments}
"""By activation, what :func:`linfb.theory.committee_learning` needs."""
