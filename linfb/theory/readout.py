"""The lazy limit: features stay as they were drawn and only the readout learns."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import exp1, exprel

from linfb._checks import real, real_array, times_array

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def readout_only_map(A: Any, W1: Any, W2: Any, times: Any, *, weight_decay: float = 0.0) -> np.ndarray:
    r"""Return the map of a two-layer network without feedback at all `times`: linear regression on W1.

    With :math:`\dot W_1 = -\lambda W_1` and :math:`\dot W_2 = (A - W_2 W_1) W_1^\top - \lambda W_2`, for each singular
    triple :math:`W_1(0) = \sum_j g_j h_j x_j^\top`,

    .. math::
        W_2 W_1(t) = e^{-2\lambda t} \sum_j \Bigl[ g_j\, e^{-g_j^2\theta(t)}\, W_2(0) h_j
        + g_j^2\, A x_j \int_0^t e^{-g_j^2(\theta(t) - \theta(s))}\, ds \Bigr] x_j^\top, \qquad
        \theta(t) = \frac{1 - e^{-2\lambda t}}{2\lambda}.

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
    weight_decay : float
        Decay of both layers, in units of 1 / tau.

    Returns
    -------
    numpy.ndarray, shape (time, out, in)
        W2 @ W1.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, times do not increase or the decay is negative.

    Notes
    -----
    Exact. Without decay the integral is (1 - exp(-g^2 t)) / g^2 and the map tends to A restricted to the rows of
    W1; with decay everything fades in the end, since the features do. The integral is then a difference of two
    exponential integrals E1 (for 2 weight_decay t > 1), or an analytic integrand on a short interval, for which
    40 Gauss-Legendre nodes are exact to rounding. Derived in :doc:`/derivations/linear_regression_limit`, checked in
    ``tests/test_theory_readout.py``.

    References
    ----------
    :cite:p:`saxe2013,braun2022`

    Examples
    --------
    >>> import numpy as np
    >>> readout_only_map([[2.0, 1.0]], [[1.0, 0.0]], [[0.0]], [0.0, 1.0, 100.0])[:, 0]
    array([[0.        , 0.        ],
           [1.26424112, 0.        ],
           [2.        , 0.        ]])
    """
    A = real_array("A", A, ("out", "in"))
    W1 = real_array("W1", W1, ("hidden", A.shape[1]))
    W2 = real_array("W2", W2, (A.shape[0], W1.shape[0]))
    times = times_array("times", times)
    decay = real("weight_decay", weight_decay, at_least=0.0)
    hidden, strength, inputs = np.linalg.svd(W1, full_matrices=False)
    kept = np.exp(-np.outer(times * exprel(-2 * decay * times), strength**2))
    learned = strength**2 * _memory(times, strength**2, decay)
    fading = np.exp(-2 * decay * times)[:, None]
    start, goal = (W2 @ hidden) * strength, A @ inputs.T
    return (start * (fading * kept)[:, None, :] + goal * (fading * learned)[:, None, :]) @ inputs


def _memory(times: np.ndarray, power: np.ndarray, decay: float) -> np.ndarray:
    """Return the integral of exp(-power (theta(t) - theta(s))) over s from 0 to t, shape (time, mode)."""
    t, power = np.broadcast_arrays(times[:, None], power)
    if decay == 0.0:
        return t * exprel(-power * t)
    result, start = np.empty(t.shape), power / (2 * decay)
    short, faint = 2 * decay * t <= 1, start < 1e-30
    long = ~short & ~faint
    result[short] = _short_memory(t[short], power[short], decay)
    result[~short & faint] = t[~short & faint]
    log_ratio = 2 * decay * t[long]
    end = start[long] * np.exp(-log_ratio)
    lost = np.exp(end - start[long]) * _scaled_exp1(start[long], np.log(start[long]))
    result[long] = (_scaled_exp1(end, np.log(start[long]) - log_ratio) - lost) / (2 * decay)
    return result


def _short_memory(t: np.ndarray, power: np.ndarray, decay: float) -> np.ndarray:
    """Integrate exp(-power u) / (1 - 2 decay (theta - u)) over u up to theta, or to where exp(-45) is left."""
    theta = t * exprel(-2 * decay * t)
    end = np.minimum(theta, np.divide(45.0, power, out=np.full(t.shape, np.inf), where=power > 0))
    u = end[:, None] * (NODES + 1) / 2
    integrand = np.exp(-power[:, None] * u) / (1 - 2 * decay * (theta[:, None] - u))
    return end / 2 * (integrand @ WEIGHTS)


def _scaled_exp1(x: np.ndarray, log_x: np.ndarray) -> np.ndarray:
    """Return exp(x) E1(x), also where x or E1(x) underflows."""
    middle = np.clip(x, 1e-10, 500.0)
    inverse = 1 / np.maximum(x, 500.0)
    series = np.zeros_like(x)
    for n in range(8, 0, -1):
        series = -n * inverse * (1 + series)
    small = (1 + np.minimum(x, 1e-10)) * (x - np.euler_gamma - log_x)
    return np.where(x < 1e-10, small, np.where(x > 500.0, inverse * (1 + series), np.exp(middle) * exp1(middle)))
