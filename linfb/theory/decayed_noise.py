r"""Online learning under weight decay: the loss that label noise and the choice of samples keep up at the end.

Weight decay leaves an error and an isolated end point (but for turns of hidden units, which do not matter). With the
covariance N of the gradient of one sample there, the loss settles above that of the end point by

.. math::
    \frac{\eta}{2b}\operatorname{tr} N\,\nabla^2V, \qquad V = \int_0^\infty \bigl(L(w_t) - L_\infty\bigr)\,dt ,

the loss that the flow from weights w still costs: on average V does not change, by its gradient along the flow,
:math:`L_\infty - L`, and by its Hessian through the squares of steps. This is what a Lyapunov equation for the
covariance of all weights gives, together with the shift of their mean, which matters as the loss is not at a minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import solve_continuous_lyapunov

from linfb._checks import integer, real, real_array
from linfb.theory.fixed_points import learned_modes
from linfb.theory.noise import label_covariance, step_strength


def decayed_mode_excess_loss(
    s: float, kappa: float, n_in: int, n_out: int, rank: int, *, weight_decay: float, noise: float,
    learning_rate: float, batch_size: int = 1,
) -> float:  # fmt: skip
    r"""Return the loss that online learning of one mode keeps up under weight decay, to first order in its rate.

    .. math::
        \frac{\eta\sigma^2s}{4b\sqrt\kappa}\Bigl[(1-\theta)\Bigl(n + \theta r + (1-\theta)\kappa m
        - 2(1-\kappa)\frac{1 + 3\theta - 6\theta^2}{3 - 2\theta}\Bigr) + 2\theta\Bigr]
        + \frac{\eta\lambda^2s}{4b\sqrt\kappa}\bigl[(1-\theta)(n + 3) + 4\theta\bigr], \qquad
        \theta = \frac{\lambda}{\sqrt\kappa\,s}

    Parameters
    ----------
    s : float
        Singular value of the task, > 0.
    kappa : float
        Share of the mode's output direction that the channel sees, in (0, 1].
    n_in, n_out : int
        Numbers of inputs n and outputs m.
    rank : int
        Width r of the channel, at most n_out.
    weight_decay : float
        :math:`\lambda > 0`, in units of 1 / tau.
    noise : float
        Standard deviation :math:`\sigma` of the independent label noise of every output.
    learning_rate : float
        :math:`\eta`, in units of tau.
    batch_size : int
        Samples b per step.

    Returns
    -------
    float
        :math:`\tfrac12\langle\|A - W_2W_1\|^2\rangle - \tfrac12\|A - W_2W_1\|^2_\infty`; zero if the mode is not
        learned, as no sample moves weights that are zero.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is outside its range.

    Notes
    -----
    Whitened Gaussian inputs, P with orthonormal rows. The second part is due to the samples alone, which differ in
    the error that decay leaves, of size :math:`\lambda/\sqrt\kappa`. The first tends to :func:`mode_excess_loss` with
    ``balance=1`` as the decay tends to zero. That is not what is left without decay: decay undoes the imbalance that
    noise makes (:func:`noise_balance`) at the rate :math:`2\lambda` only, so that times above :math:`1/\lambda` and
    :math:`\eta\sigma^2/b \ll \lambda` are assumed. For weak decay comparable with :math:`\eta\sigma^2/b`,
    :func:`mode_excess_loss` holds with the balance :math:`(n\eta\sigma^2/b + 2\lambda)/(r\eta\sigma^2/b + 2\lambda)`.
    The relative error is of order :math:`\eta`. Derived in ``derivations/decayed_noise.py``, checked in
    ``tests/test_theory_decayed_noise.py``.

    References
    ----------
    :cite:p:`kunin2019,hanut2025`

    Examples
    --------
    >>> options = {"weight_decay": 0.1, "noise": 0.5, "learning_rate": 0.01}
    >>> decayed_mode_excess_loss(2.0, 1.0, 10, 6, 6, **options)
    0.01975...
    >>> decayed_mode_excess_loss(2.0, 0.25, 10, 6, 2, **options)
    0.02620...
    """
    s, kappa = real("s", s, above=0.0), real("kappa", kappa, above=0.0, at_most=1.0)
    n_in, n_out = integer("n_in", n_in, at_least=1), integer("n_out", n_out, at_least=1)
    rank, decay = integer("rank", rank, at_least=1, at_most=n_out), real("weight_decay", weight_decay, above=0.0)
    variance, step = real("noise", noise, at_least=0.0) ** 2, step_strength(learning_rate, batch_size)
    lost = decay / (np.sqrt(kappa) * s)
    if lost >= 1:
        return 0.0
    kept = 1 - lost
    tilt = 2 * (1 - kappa) * (1 + 3 * lost - 6 * lost**2) / (3 - 2 * lost)
    labels = kept * (n_in + lost * rank + kept * kappa * n_out - tilt) + 2 * lost
    samples = kept * (n_in + 3) + 4 * lost
    return float(step * s / (4 * np.sqrt(kappa)) * (variance * labels + decay**2 * samples))


def end_point_excess_loss(
    A: Any, P: Any, *, weight_decay: float, noise: Any, learning_rate: float, n_hidden: int | None = None,
    batch_size: int = 1,
) -> float:  # fmt: skip
    r"""Return the loss that online learning keeps up about its end under weight decay, to first order in its rate.

    .. math::
        \frac{\eta}{2b}\operatorname{tr} NH, \qquad
        J^\top H + HJ = -\nabla^2L - \nabla V\cdot\nabla^2f, \qquad J^\top\nabla V = -\nabla L

    with the flow f of both layers, its Jacobian J, the loss L and the covariance N of the gradient of one sample.

    Parameters
    ----------
    A : array_like, shape (out, in)
        Input-output correlation; inputs are whitened.
    P : array_like, shape (rank, out), or None
        The reader of the channel; its scale counts. None is backpropagation, P = I.
    weight_decay : float
        Decay of both layers, > 0, in units of 1 / tau.
    noise : float or array_like, shape (out, out)
        Standard deviation of isotropic label noise, or its covariance.
    learning_rate : float
        In units of tau.
    n_hidden : int, optional
        Number of hidden units; None means enough of them. More of them than modes are learned make no difference.
    batch_size : int
        Samples b per step.

    Returns
    -------
    float
        :math:`\tfrac12\langle\|A - W_2W_1\|^2\rangle - \tfrac12\|A - W_2W_1\|^2_\infty`.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, an entry is not finite, a number is out of range, or the end point is not isolated.

    Notes
    -----
    Whitened Gaussian inputs, aligned mirror. Gradients of single samples vary by label noise and, since an error is
    left, by their inputs: :math:`\langle\delta_ax_i\,\delta_bx_j\rangle_c = (EE^\top + \Sigma_\xi)_{ab}\delta_{ij} +
    E_{aj}E_{bi}`. Turns of hidden units leave L and f as they are: in these directions J is singular, and H follows
    from the symmetry of V. Needs a learning rate that is small against weight decay and against the distance of every
    singular value of PA from it (see :func:`decayed_mode_excess_loss`). The cost grows with the third power of the
    number of weights of learned modes. Checked in ``tests/test_theory_decayed_noise.py`` against online learning.

    References
    ----------
    :cite:p:`kunin2019,hanut2025`

    Examples
    --------
    >>> end_point_excess_loss([[2.0, 0.0]], None, weight_decay=0.5, noise=1.0, learning_rate=0.1)
    0.196875
    """
    A = real_array("A", A, ("out", "in"))
    P = np.eye(len(A)) if P is None else real_array("P", P, ("rank", len(A)))
    decay, Sigma = real("weight_decay", weight_decay, above=0.0), label_covariance(noise, len(A))
    step = step_strength(learning_rate, batch_size)
    learned = learned_modes(A, P, weight_decay=decay, n_hidden=n_hidden)
    if not learned:
        return 0.0  # no sample moves weights that are zero
    _, strengths, right = np.linalg.svd(P @ A, full_matrices=False)
    roots = np.sqrt(strengths[:learned] - decay)
    W1, W2 = roots[:, None] * right[:learned], (A @ right[:learned].T) * (roots / strengths[:learned])
    E, metric = A - W2 @ W1, P.T @ P
    probe = np.eye(A.size).reshape(A.size, *A.shape)  # of the products delta x^T
    gradients = _flat(W2.T @ metric @ probe, probe @ W1.T)
    cost = (gradients @ _remaining_cost(W1, W2, E, metric, decay) @ gradients.T).reshape(*A.shape, *A.shape)
    spread = np.einsum("aibi,ab", cost, E @ E.T + Sigma) + np.einsum("aibj,aj,bi", cost, E, E)
    return float(step / 2 * spread)


def _remaining_cost(W1: np.ndarray, W2: np.ndarray, E: np.ndarray, metric: np.ndarray, decay: float) -> np.ndarray:
    """Return the Hessian of V at the end point, in the entries of W1 and then W2."""
    (n_hidden, n_in), n_out = W1.shape, len(W2)
    size = n_hidden * (n_in + n_out)
    X = np.eye(size)[:, : W1.size].reshape(size, n_hidden, n_in)
    Y = np.eye(size)[:, W1.size :].reshape(size, n_out, n_hidden)
    XT, YT = np.swapaxes(X, 1, 2), np.swapaxes(Y, 1, 2)
    change = Y @ W1 + W2 @ X
    flow = _flat(YT @ metric @ E - W2.T @ metric @ change - decay * X, E @ XT - change @ W1.T - decay * Y).T
    rows, columns = np.triu_indices(n_hidden, 1)
    turns = np.zeros((len(rows), n_hidden, n_hidden))
    turns[range(len(rows)), rows, columns], turns[range(len(rows)), columns, rows] = 1.0, -1.0
    still = _flat(turns @ W1, -W2 @ turns).T
    back = np.linalg.pinv(still)
    moving = flow - still @ back  # turns are made to decay: there the Hessian is known
    if not np.linalg.eigvals(moving).real.max(initial=-np.inf) < -1e-12 * np.linalg.norm(flow):
        raise ValueError("n_hidden cuts between equal singular values of PA: the end point is not isolated")
    gradient = np.linalg.solve(moving.T, change.reshape(size, -1) @ E.ravel())
    V1, V2 = gradient[: W1.size].reshape(W1.shape), gradient[W1.size :].reshape(W2.shape)
    bends = _products(change, change) / 2 - _products(YT @ E, X)  # of the loss, then of the flow along the gradient
    bends -= _products(metric @ Y @ V1 + V2 @ X, change) + _products(YT @ (metric @ W2 @ V1 + V2 @ W1), X)
    known = _flat(turns @ V1, -V2 @ turns).T @ back  # for the gradient turns with the weights
    return solve_continuous_lyapunov(moving.T, -(bends + bends.T) - known - known.T)


def _flat(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return both layers' entries in one row per leading index."""
    return np.concatenate([part.reshape(len(part), np.prod(part.shape[1:], dtype=int)) for part in (first, second)], 1)


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the inner products of all pairs of matrices."""
    return left.reshape(len(left), -1) @ right.reshape(len(right), -1).T
