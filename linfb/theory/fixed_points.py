"""Where learning ends: which directions of the task a fixed channel lets through."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import integer, real, real_array


def end_point(A: Any, P: Any, *, weight_decay: float, n_hidden: int | None = None) -> np.ndarray:
    r"""Return the map that a two-layer network with fixed aligned feedback ends at.

    .. math::
        W_2 W_1(\infty) = A \sum_{i \le k} \max(0,\, 1 - \lambda / \sigma_i)\, v_i v_i^\top

    with the singular values and right singular vectors of PA in falling order.

    Parameters
    ----------
    A : array_like, shape (out, in)
        Input-output correlation; inputs are whitened.
    P : array_like, shape (rank, out), or None
        The reader of the channel; its scale counts. None is backpropagation, P = I.
    weight_decay : float
        Decay of both layers and of Q, in units of 1 / tau; 0 means the limit from above.
    n_hidden : int, optional
        Number of hidden units k; None means enough of them.

    Returns
    -------
    numpy.ndarray, shape (out, in)

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, an entry is not finite, or a number is out of range.

    Notes
    -----
    Assumes whitened inputs, equal rates and decay of all weights, and a generic start (one that excites every
    direction). For ``weight_decay=0`` the limit of infinite time is taken first: without any decay a wide
    hidden layer and a small start eps stay at this map only for times far below 1 / eps^2, whereafter the readout
    slowly learns what the channel does not see. If the k-th and the next singular value agree, the end point
    depends on the start; one of the possible ones is returned. Soft thresholds from separate decay of two factors are
    known :cite:p:`kunin2019`; here they act on the singular values of PA, and the readout follows.
    Derived in :doc:`/derivations/end_point` and :doc:`/derivations/vanishing_decay`; checked in
    ``tests/test_theory_fixed_points.py`` against integrated flows, and as the limit of ``exact_map``.

    References
    ----------
    :cite:p:`kunin2019,hanut2025`

    Examples
    --------
    >>> import numpy as np
    >>> end_point(np.diag([3.0, 1.0]), None, weight_decay=0.5)
    array([[2.5, 0. ],
           [0. , 0.5]])
    >>> end_point(np.diag([3.0, 1.0]), [[0.5, 0.0]], weight_decay=0.5)
    array([[2., 0.],
           [0., 0.]])
    """
    A, strength, right, learned, decay = _channel(A, P, weight_decay, n_hidden)
    kept = right[:learned]
    return (A @ kept.T) @ ((1 - decay / strength[:learned])[:, None] * kept)


def learned_modes(A: Any, P: Any, *, weight_decay: float, n_hidden: int | None = None) -> int:
    r"""Return how many directions of the task survive: :math:`\min(k, \#\{i: \sigma_i(PA) > \lambda\})`.

    Parameters
    ----------
    A, P, weight_decay, n_hidden
        As in :func:`end_point`.

    Returns
    -------
    int
        The rank of the end point, at most the rank of P.

    Raises
    ------
    TypeError, ValueError
        As in :func:`end_point`.

    Notes
    -----
    The threshold is sharp and strict; without decay singular values above rounding (machine epsilon times the larger
    size, relative to the largest of P times that of A) count. Derived in :doc:`/derivations/threshold`, checked in
    ``tests/test_theory_fixed_points.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> import numpy as np
    >>> [learned_modes(np.diag([3.0, 1.0]), None, weight_decay=decay) for decay in (0.0, 2.0, 4.0)]
    [2, 1, 0]
    """
    return _channel(A, P, weight_decay, n_hidden)[3]


def _channel(
    A: Any, P: Any, weight_decay: float, n_hidden: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float]:
    A = real_array("A", A, ("out", "in"))
    P = np.eye(A.shape[0]) if P is None else real_array("P", P, ("rank", A.shape[0]))
    decay = real("weight_decay", weight_decay, at_least=0.0)
    _, strength, right = np.linalg.svd(P @ A, full_matrices=False)
    threshold = max(decay, _rounding(P, A))
    learned = int(np.sum(strength > threshold))
    if n_hidden is not None:
        learned = min(learned, integer("n_hidden", n_hidden, at_least=1))
    return A, strength, right, learned, decay


def feedback_alignment_end_point(A: Any, B: Any, *, weight_decay: float) -> np.ndarray:
    r"""Return the map at which feedback alignment with a fixed B of any rank ends.

    .. math::
        W_2 W_1(\infty) = A \sum_i \frac{y_i^2}{\lambda^3 + y_i^2}\, v_i v_i^\top, \qquad
        y_i + \frac{y_i^3}{\lambda^3} = \sigma_i,

    with the singular values and right singular vectors of :math:`B^\top A`.

    Parameters
    ----------
    A : array_like, shape (out, in)
        Input-output correlation; inputs are whitened.
    B : array_like, shape (out, hidden)
        Fixed feedback in the place of W2, shaped like it.
    weight_decay : float
        Decay of both layers, in units of 1 / tau; 0 means the limit from above, which is also where
        training without decay ends from zero weights.

    Returns
    -------
    numpy.ndarray, shape (out, in)

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite or the decay is negative.

    Notes
    -----
    Derived in :doc:`/derivations/feedback_alignment_stationary`: at rest :math:`\lambda W_1 = B^\top E` and
    :math:`\lambda W_2 = E W_1^\top`, so that :math:`E (I + Y^\top Y / \lambda^3) = A` with :math:`Y = B^\top E`. Times
    :math:`B^\top` this reads :math:`Y + Y Y^\top Y / \lambda^3 = B^\top A`, whose only solution has the singular
    vectors of :math:`B^\top A` and the singular values y. The point of rest is therefore unique, for any rank of B, and
    every mode that the feedback reaches is learned in part: there is no threshold, unlike with a mirror
    (:func:`end_point`). That the flow converges to it is an observation of ``tests/test_theory_fixed_points.py``, not
    proved here.

    References
    ----------
    :cite:p:`lillicrap2016,refinetti2021`

    Examples
    --------
    >>> import numpy as np
    >>> feedback_alignment_end_point(np.diag([3.0, 1.0]), [[1.0], [0.0]], weight_decay=0.5)
    array([[2.33652186, 0.        ],
           [0.        , 0.        ]])
    """
    A = real_array("A", A, ("out", "in"))
    B = real_array("B", B, (A.shape[0], "hidden"))
    decay = real("weight_decay", weight_decay, at_least=0.0)
    _, strength, right = np.linalg.svd(B.T @ A, full_matrices=False)
    kept = strength > _rounding(B, A)
    share = _regression_share(strength[kept], decay)
    return (A @ right[kept].T) @ (share[:, None] * right[kept])


def _regression_share(strength: np.ndarray, decay: float) -> np.ndarray:
    """Return q / (1 + q) of q = y^2 / decay^3 with y (1 + q) = strength, by the one real root of Cardano."""
    if decay**1.5 == 0.0:
        return np.ones_like(strength)
    root = 2 / np.sqrt(3) * np.sinh(np.arcsinh(1.5 * np.sqrt(3) * strength / decay**1.5) / 3)  # y / decay^1.5
    return root**2 / (1 + root**2)


def _rounding(P: np.ndarray, A: np.ndarray) -> float:
    """Return the size of a singular value of P @ A that is nothing but rounding."""
    if P.size == 0 or A.size == 0:
        return 0.0
    return max(P.shape[1], *A.shape) * np.finfo(float).eps * np.linalg.norm(P, 2) * np.linalg.norm(A, 2)
