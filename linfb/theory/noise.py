r"""Finite steps at the end of learning: label noise in the steady state, and the largest stable learning rate.

Two layers, aligned feedback through a fixed P, no weight decay, all of the task learned: :math:`W_2W_1 = A`. To first
order in what is left of the error, E = A - W_2 W_1, a step on the sample (x, y) with label noise :math:`\xi` changes

.. math::
    E \to E - \eta\,\bigl[\delta x^\top G_1 + G_2 M\,\delta x^\top\bigr], \qquad \delta = Ex + \xi, \qquad
    G_1 = W_1^\top W_1, \quad G_2 = W_2W_2^\top .
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import solve_continuous_lyapunov
from scipy.optimize import brentq

from linfb._checks import covariance, integer, real, real_array


def mode_excess_loss(
    s: float, kappa: float, n_in: int, n_out: int, *, noise: float, learning_rate: float, batch_size: int = 1,
    balance: float = 1.0,
) -> float:  # fmt: skip
    r"""Return the loss that label noise keeps up after one mode has been learned, to first order in the learning rate.

    .. math::
        \frac{\eta\sigma^2}{2b}\Bigl[\tfrac{n-1}2\,\gamma + \tfrac{m-1}2\,\alpha + \tfrac{\alpha + \gamma\kappa}2
        + \frac{\gamma^2\kappa(1-\kappa)}{2(2\alpha + \gamma\kappa)}\Bigr], \qquad
        \alpha = s\sqrt{\kappa\nu}, \quad \gamma = \frac{s}{\sqrt{\kappa\nu}}

    Parameters
    ----------
    s : float
        Singular value of the task, > 0.
    kappa : float
        Share of the mode's output direction that the channel sees, in (0, 1].
    n_in, n_out : int
        Numbers of inputs n and outputs m.
    noise : float
        Standard deviation :math:`\sigma` of the independent label noise of every output.
    learning_rate : float
        :math:`\eta`, in units of tau.
    batch_size : int
        Samples b per step.
    balance : float
        :math:`\nu = |W_1|^2 / |PW_2|^2`: one after learning, n / r after times long against 1 / (learning_rate noise^2)
        (:func:`noise_balance`).

    Returns
    -------
    float
        :math:`\tfrac12\langle\|A - W_2W_1\|^2\rangle`, on top of the loss of the noise itself.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is outside its range.

    Notes
    -----
    Whitened Gaussian inputs, P with orthonormal rows, one hidden unit in use. Narrow channels leave the readout large
    (gamma) and the features small (alpha): the error in the n - 1 unused input directions, which the first layer has to
    undo, grows as one over the root of kappa. For ``kappa=1`` it is :math:`\eta\sigma^2 s(n + m)/(4b)`. The relative
    error is of order :math:`\eta`. Derived in :doc:`/derivations/label_noise_mode`, checked in
    ``tests/test_theory_noise.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> options = {"noise": 0.5, "learning_rate": 0.01}
    >>> mode_excess_loss(2.0, 1.0, 10, 6, **options), mode_excess_loss(2.0, 0.25, 10, 6, **options)
    (0.02, 0.0275)
    """
    s, kappa = real("s", s, above=0.0), real("kappa", kappa, above=0.0, at_most=1.0)
    n_in, n_out = integer("n_in", n_in, at_least=1), integer("n_out", n_out, at_least=1)
    strength = step_strength(learning_rate, batch_size) * real("noise", noise, at_least=0.0) ** 2
    root = np.sqrt(kappa * real("balance", balance, above=0.0))
    features, readout = s * root, s / root
    seen = readout * kappa
    inputs = (n_in - 1) * readout
    outputs = (n_out - 1) * features
    both = features + seen + readout * seen * (1 - kappa) / (2 * features + seen)
    return float(strength * (inputs + outputs + both) / 4)


def excess_loss(W1: Any, W2: Any, *, noise: Any, learning_rate: float, P: Any = None, batch_size: int = 1) -> float:
    r"""Return the loss that label noise keeps up about learned weights, to first order in the learning rate.

    .. math::
        \frac{\eta}{2b}\sum_i \operatorname{tr} X_i, \qquad
        R_iX_i + X_iR_i^\top = R_i\Sigma_\xi R_i^\top, \qquad R_i = g_iI + W_2W_2^\top M

    with the n eigenvalues :math:`g_i` of :math:`W_1^\top W_1`.

    Parameters
    ----------
    W1 : array_like, shape (hidden, in)
        Weights without error, W_2 W_1 = A.
    W2 : array_like, shape (out, hidden)
    noise : float or array_like, shape (out, out)
        Standard deviation of isotropic label noise, or its covariance.
    learning_rate : float
        In units of tau.
    P : array_like, shape (rank, out), optional
        The reader of the channel; None is backpropagation.
    batch_size : int
        Samples b per step.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, an entry is not finite or a number is outside its range.

    Notes
    -----
    Whitened Gaussian inputs. The weights drift slowly along the manifold of those without error
    (:func:`noise_balance`): the formula holds at every point of it. The readout alone moves E within the range of W_2;
    directions in which nothing moves keep their error of zero. Under weight decay: :func:`end_point_excess_loss`.
    Derived for one mode in :doc:`/derivations/label_noise_mode`, checked in ``tests/test_theory_noise.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> excess_loss([[1.0, 0.0]], [[2.0], [0.0]], noise=1.0, learning_rate=0.1)
    0.25
    """
    W1, W2, metric = _weights(W1, W2, P)
    n_out = len(W2)
    Sigma = label_covariance(noise, n_out)
    strengths = np.zeros(W1.shape[1])
    found = np.linalg.svd(W1, compute_uv=False) ** 2
    strengths[: found.size] = found
    # The readout alone moves E within range(W2): there the operator is regular, and elsewhere it is g_i I.
    basis, values, _ = np.linalg.svd(W2, full_matrices=False)
    basis = basis[:, values > values.max(initial=0.0) * n_out * np.finfo(float).eps]
    total = 0.0
    for g in strengths:
        if g > strengths.max() * n_out * np.finfo(float).eps:
            R = g * np.eye(n_out) + W2 @ W2.T @ metric
            total += np.trace(solve_continuous_lyapunov(R, R @ Sigma @ R.T))
        else:
            drive = basis.T @ W2 @ W2.T @ metric
            R = drive @ basis
            total += np.trace(solve_continuous_lyapunov(R, drive @ Sigma @ drive.T))
    return float(step_strength(learning_rate, batch_size) / 2 * total)


def noise_balance(W1: Any, W2: Any, *, noise: float, learning_rate: float, P: Any = None, batch_size: int = 1) -> Any:
    r"""Return how fast steps on noisy labels change what the flow conserves.

    .. math::
        \frac{\mathrm d}{\mathrm dt}\bigl(W_1W_1^\top - W_2^\top MW_2\bigr)
        = \frac{\eta\sigma^2}{b}\bigl(n\,W_2^\top M^2W_2 - \operatorname{tr}(M)\,W_1W_1^\top\bigr)

    Parameters
    ----------
    W1, W2, learning_rate, P, batch_size
        As in :func:`excess_loss`.
    noise : float
        Standard deviation of isotropic label noise.

    Returns
    -------
    numpy.ndarray, shape (hidden, hidden)
        Per unit of time (1 / learning_rate steps).

    Raises
    ------
    TypeError, ValueError
        As in :func:`excess_loss`.

    Notes
    -----
    Exact to this order at weights without error: the flow's own changes cancel, and the squares of a step remain. With
    orthonormal rows of P it comes to rest where :math:`W_1W_1^\top = (n/r)\,W_2^\top MW_2`: a narrow channel hears
    less noise than the readout. Derived in :doc:`/derivations/label_noise_drift`, checked in
    ``tests/test_theory_noise.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> noise_balance([[1.0, 0.0]], [[1.0], [0.0]], noise=1.0, learning_rate=0.1, P=[[1.0, 0.0]])
    array([[0.1]])
    """
    W1, W2, metric = _weights(W1, W2, P)
    strength = step_strength(learning_rate, batch_size) * real("noise", noise, at_least=0.0) ** 2
    return strength * (W1.shape[1] * W2.T @ metric @ metric @ W2 - np.trace(metric) * W1 @ W1.T)


def largest_step(W1: Any, W2: Any, *, P: Any = None, batch_size: int | None = None) -> float:
    r"""Return the learning rate above which learned weights are unstable.

    .. math::
        \eta_{\max} = \frac{2}{\lambda_{\max}(W_1^\top W_1) + \lambda_{\max}(PW_2W_2^\top P^\top)}

    Parameters
    ----------
    W1, W2, P
        As in :func:`excess_loss`.
    batch_size : int, optional
        Samples per step of online learning; None means all of the data, for which the formula holds.

    Returns
    -------
    float
        In units of tau; infinite if nothing moves.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, an entry is not finite or a number is outside its range.

    Notes
    -----
    For M-balanced weights it is :math:`1/\sigma_1(PA)`: for one mode :math:`1/(\sqrt\kappa s)`. A channel that makes a
    mode :math:`1/\sqrt\kappa` times slower allows steps that many times larger. With a batch size it is the limit of
    stability in the mean square under whitened Gaussian inputs, where the second moments of E neither grow nor decay
    (found by power iteration and bisection to about 1e-6). Weights that do not learn all of the task are outside its
    scope. Derived in :doc:`/derivations/largest_step`, checked in ``tests/test_theory_noise.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> largest_step([[2.0, 0.0]], [[1.0], [0.0]])
    0.4
    """
    W1, W2, metric = _weights(W1, W2, P)
    G1, N = W1.T @ W1, W2 @ W2.T @ metric
    fastest = np.linalg.norm(W1, 2) ** 2 + np.max(np.abs(np.linalg.eigvals(N)))
    if fastest == 0:
        return float("inf")
    if batch_size is None:
        return float(2 / fastest)
    batch_size = integer("batch_size", batch_size, at_least=1)
    return float(brentq(lambda step: _growth(G1, N, step, batch_size) - 1, 1e-4 / fastest, 2 / fastest, rtol=1e-6))


def _growth(G1: np.ndarray, N: np.ndarray, step: float, batch_size: int) -> float:
    """Return by which factor a step multiplies the second moments of E in the long run.

    C[a, i, b, j] is the mean of E[a, i] E[b, j]; for Gaussian x, with Y = E x x^T, that of Y[a, i] Y[b, j] is
    C[a, i, b, j] + C[a, j, b, i] + delta_ij sum_k C[a, k, b, k].
    """
    n_out, n_in = len(N), len(G1)
    identity = np.eye(n_in)
    K = np.kron(np.eye(n_out), G1) + np.kron(N, identity)  # E -> E G1 + N E, on rows of E one after the other
    mean = np.eye(len(K)) - step * K
    basis, values, _ = np.linalg.svd(K)
    basis = basis[:, values > values[0] * len(K) * np.finfo(float).eps]
    moves = basis @ basis.T  # rounding would put E that rests, and does not decay, into what does
    C, factor = K @ K.T, 1.0
    for _ in range(2000):
        cube = C.reshape(n_out, n_in, n_out, n_in)
        trace = np.trace(cube, axis1=1, axis2=3)
        spread = np.swapaxes(cube, 1, 3).reshape(C.shape) + np.kron(trace, identity)
        new = moves @ (mean @ C @ mean.T + step**2 / batch_size * K @ spread @ K.T) @ moves
        before, factor = factor, float(np.linalg.norm(new) / np.linalg.norm(C))
        C = new / np.linalg.norm(new)
        if abs(factor - before) < 1e-10:
            break
    return factor


def label_covariance(noise: Any, n_out: int) -> np.ndarray:
    """Return the covariance of label noise from its standard deviation, or as it was given."""
    if np.ndim(noise) == 0:
        return real("noise", noise, at_least=0.0) ** 2 * np.eye(n_out)
    return covariance("noise", noise, n_out)


def step_strength(learning_rate: Any, batch_size: Any) -> float:
    """Return learning_rate / batch_size, which is what the noise of steps depends on."""
    return real("learning_rate", learning_rate, above=0.0) / integer("batch_size", batch_size, at_least=1)


def _weights(W1: Any, W2: Any, P: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return checked weights and the metric of the channel."""
    W1 = real_array("W1", W1, ("hidden", "in"))
    W2 = real_array("W2", W2, ("out", len(W1)))
    P = np.eye(len(W2)) if P is None else real_array("P", P, ("rank", len(W2)))
    return W1, W2, P.T @ P
