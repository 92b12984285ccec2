"""Infinitely wide two-layer networks in the lazy regime: the kernel that each rule learns with."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import choice, covariance, real_array
from linfb.theory._gaussian import PAIRS
from linfb.theory.modes import non_negative


def tangent_kernels(X: Any, Z: Any = None, *, activation: str) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the two parts of the tangent kernel of an infinitely wide two-layer network: readout and hidden layer.

    .. math::
        \hat y(x) = \frac{1}{\sqrt k} W_2\,\phi\!\left(\frac{W_1 x}{\sqrt n}\right), \qquad
        \Sigma(x, z) = \langle\phi(u)\phi(v)\rangle, \qquad
        \Theta(x, z) = \frac{x\cdot z}{n}\,\langle\phi'(u)\phi'(v)\rangle

    with standard normal weights, so that (u, v) are Gaussian with covariances x.x/n, x.z/n and z.z/n.

    Parameters
    ----------
    X : array_like, shape (sample, in)
        Inputs, one a row.
    Z : array_like, shape (other, in), optional
        A second set of inputs; the first by default.
    activation : {"linear", "relu", "erf"}
        The hidden units' function; erf is erf(u / sqrt 2), the engine's ``Erf``.

    Returns
    -------
    readout, hidden : numpy.ndarray, shape (sample, other)
        :math:`\Sigma`, of learning W2, and :math:`\Theta`, of learning W1 by the errors of the output.

    Raises
    ------
    TypeError, ValueError
        If the activation is none of these, a shape does not fit or an entry is not finite.

    Notes
    -----
    The output's error at z moves the output at x by :math:`\Sigma\,I + \Theta\,C`, where the matrix
    :math:`C = \lim_{k\to\infty} W_2 B / k` is all that is left of the feedback B (hidden x out in this formula): see
    :func:`lazy_outputs`. Exact for infinite width. ReLU: arc-cosine kernels of order 1 and 0, where an angle below
    1e-8 cannot be told from zero; erf: the arcsine kernel and its derivative. The hidden part of the kernel is the
    input's product times the derivative of the readout's part by the covariance of the fields (Price's theorem).
    Derived in :doc:`/derivations/tangent_kernels`, checked in ``tests/test_theory_wide.py`` against quadrature.

    References
    ----------
    :cite:p:`cho2009,williams1998,jacot2018,price1958`

    Examples
    --------
    >>> readout, hidden = tangent_kernels([[1.0, 0.0], [0.0, 1.0]], activation="relu")
    >>> readout
    array([[0.25      , 0.0795...],
           [0.0795..., 0.25      ]])
    >>> hidden
    array([[0.25, 0.  ],
           [0.  , 0.25]])
    """
    X = real_array("X", X, ("sample", "in"))
    Z = X if Z is None else real_array("Z", Z, ("other", X.shape[1]))
    product, slopes = PAIRS[choice("activation", activation, PAIRS)]
    between = X @ Z.T / X.shape[1]
    variances = (np.mean(X**2, axis=1)[:, None], between, np.mean(Z**2, axis=1))
    return product(*variances), between * slopes(*variances)


def lazy_outputs(
    t: Any,
    X: Any,
    Y: Any,
    X_test: Any = None,
    *,
    metric: Any = 1.0,
    activation: str,
    start: Any = 0.0,
    start_test: Any = 0.0,
) -> np.ndarray:
    r"""Return the outputs of an infinitely wide two-layer network while it learns by gradient flow.

    .. math::
        \dot{\hat y}(x) = \frac1p \sum_{\mu=1}^p \bigl[\Sigma(x, x_\mu)\, I + \Theta(x, x_\mu)\, C\bigr]
        \bigl(y_\mu - \hat y(x_\mu)\bigr)

    In an eigendirection of C with eigenvalue c this is kernel regression with the kernel :math:`\Sigma + c\,\Theta`.

    Parameters
    ----------
    t : array_like, shape (time,) or scalar
        Times >= 0, in units of tau = 1 / learning rate, or ``inf``.
    X : array_like, shape (sample, in)
        Training inputs.
    Y : array_like, shape (sample, out)
        Their targets.
    X_test : array_like, shape (test, in), optional
        Where the output is wanted; at the training inputs by default.
    metric : array_like, shape (out, out), or scalar
        C, symmetric and positive semi-definite; a scalar stands for a multiple of the identity. 1: backpropagation.
        P.T @ P: low-dimensional feedback with a fixed reader and an aligned mirror. 0: no feedback; also any feedback
        that is independent of the readout at the start, of whatever rank. sqrt(2 / pi): the readout's signs.
    activation : {"linear", "relu", "erf"}
        The hidden units' function, as in :func:`tangent_kernels`.
    start : array_like, shape (sample, out), or scalar
        The untrained network's outputs at the training inputs.
    start_test : array_like, shape (test, out), or scalar
        And at the test inputs; without test inputs `start` counts.

    Returns
    -------
    numpy.ndarray, shape (time, test, out), or (test, out) for a scalar t

    Raises
    ------
    TypeError, ValueError
        If the activation is none of these, a shape does not fit, the metric is not a covariance, a time is negative or
        an entry is not finite.

    Notes
    -----
    The network is that of :func:`tangent_kernels`, its loss :math:`\frac{1}{2p}\sum_\mu\|y_\mu - \hat y_\mu\|^2`, its
    first layer learns by :math:`B\delta` in the place of :math:`W_2^\top\delta`. At infinite width weights move too
    little to change C, so that a mirror that learns stays as (un)aligned as it was: feedback alignment and an
    independent Kolen-Pollack start without decay both have C = 0, and train the readout alone. A single network of
    width k deviates by O(1/sqrt k): measured in ``tests/test_theory_wide.py``. Not derived: a linear equation, solved
    in the eigenbasis of the kernel. A direction of the kernel that the data do not excite keeps its start; its time
    constant is beyond 1e12 of the fastest.

    References
    ----------
    :cite:p:`jacot2018,chizat2019,bordelon2022`

    Examples
    --------
    The channel sees the first of two outputs: the second is learned as well, by the readout, and more slowly.

    >>> import numpy as np
    >>> X, Y, seen = np.eye(2), np.ones((2, 2)), np.diag([1.0, 0.0])
    >>> lazy_outputs([0.0, 5.0, np.inf], X, Y, metric=seen, activation="relu")[:, 0]
    array([[0.        , 0.        ],
           [0.7651..., 0.5613...],
           [1.        , 1.        ]])
    """
    X = real_array("X", X, ("sample", "in"))
    Y = real_array("Y", Y, (len(X), "out"))
    own = X_test is None
    Z = X if own else real_array("X_test", X_test, ("test", X.shape[1]))
    times = np.atleast_1d(_times(t))
    C = real_array("metric", metric)
    shares, directions = np.linalg.eigh(covariance("metric", C * np.eye(Y.shape[1]) if C.ndim == 0 else C, Y.shape[1]))
    error = Y - _outputs("start", start, Y.shape)
    outputs = _outputs("start" if own else "start_test", start if own else start_test, (len(Z), Y.shape[1]))
    train, test = (tangent_kernels(X, points, activation=activation) for points in (X, Z))
    change = np.empty((times.size, len(Z), Y.shape[1]))
    for i, share in enumerate(np.maximum(shares, 0.0)):
        kernel, other = (readout + share * hidden for readout, hidden in (train, test))
        rates, vectors = np.linalg.eigh(kernel / len(X))
        excited = rates > 1e-12 * rates[-1]
        rates, vectors = rates[excited], vectors[:, excited]
        gained = -np.expm1(-np.multiply.outer(times, rates)) / rates * (vectors.T @ (error @ directions[:, i]))
        change[..., i] = gained @ (other.T @ vectors / len(X)).T
    result = outputs + change @ directions.T
    return result if np.ndim(t) else result[0]


def _times(t: Any) -> np.ndarray:
    """Return times >= 0 of which some may be infinite."""
    times = np.asarray(t, dtype=float) if np.ndim(t) <= 1 else real_array("t", t, ("time",))
    for_ever = np.isposinf(times)
    return np.where(for_ever, np.inf, non_negative("t", np.where(for_ever, 0.0, times)))


def _outputs(name: str, value: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return outputs of that shape, of a scalar as well."""
    return np.broadcast_to(real_array(name, value, None if np.ndim(value) == 0 else shape), shape)
