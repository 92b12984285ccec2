"""What a two-layer network conserves while it learns, and starts that fulfil it."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import generator, integer, real, real_array
from linfb.observables.measures import invariant
from linfb.theory.modes import non_negative


def m_balanced_weights(
    A_shape: tuple[int, int], n_hidden: int, P: Any, *, scale: float, rng: np.random.Generator, imbalance: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw weights that are M-balanced, or so up to a multiple of the identity, and otherwise generic.

    .. math:: W_1 W_1^\top = W_2^\top M W_2 + \mu I, \qquad M = P^\top P

    Parameters
    ----------
    A_shape : tuple of int
        (out, in), the shape of the task.
    n_hidden : int
        Number of hidden units.
    P : array_like, shape (rank, out), or None
        The reader of the channel; None is backpropagation, P = I.
    scale : float
        Standard deviation of the entries of W2 before the restriction named in the notes, > 0.
    rng : numpy.random.Generator
        Source of randomness.
    imbalance : float
        mu; positive if the first layer is the larger one, for which there must be at most as many hidden units as
        inputs, negative if the second is, at most as many as the rank of P. Added to what is drawn.

    Returns
    -------
    W1 : numpy.ndarray, shape (hidden, in)
    W2 : numpy.ndarray, shape (out, hidden)

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape, or is out of range, or no weights of these sizes have the imbalance.

    Notes
    -----
    W2 is Gaussian; W1 = (P W2)^T O with a uniformly random O of orthonormal rows, which exists if the rank of
    P W2, min(n_hidden, rank P), is at most the number of inputs. Otherwise W1 cannot have that rank, and no W2 of
    full rank is balanced with it: the part of W2 that the channel sees is then restricted to as many hidden
    directions as there are inputs (those it excites most). The violation is rounding, about 1e-15 of W1 W1^T. With
    as many directions as inputs half of all draws never learn the last mode (see :func:`linfb.theory.exact_map`).
    Checked in ``tests/test_theory_balance.py``.

    References
    ----------
    :cite:p:`fukumizu1998,braun2022,domine2024`

    Examples
    --------
    >>> import numpy as np
    >>> P = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> W1, W2 = m_balanced_weights((3, 5), 4, P, scale=0.1, rng=np.random.default_rng(0))
    >>> W1.shape, W2.shape
    ((4, 5), (3, 4))
    >>> bool(np.allclose(W1 @ W1.T, W2.T @ P.T @ P @ W2, rtol=0, atol=1e-15))
    True
    """
    try:
        n_out, n_in = A_shape
    except (TypeError, ValueError) as error:
        raise ValueError(f"A_shape must be (out, in), got {A_shape!r}") from error
    n_out, n_in = integer("A_shape[0]", n_out, at_least=1), integer("A_shape[1]", n_in, at_least=1)
    n_hidden, scale = integer("n_hidden", n_hidden, at_least=1), real("scale", scale, above=0.0)
    P = np.eye(n_out) if P is None else real_array("P", P, ("rank", n_out))
    W2 = scale * generator("rng", rng).standard_normal((n_out, n_hidden))
    mu = real("imbalance", imbalance)
    room = n_in if mu > 0 else np.linalg.matrix_rank(P)
    if mu and n_hidden > room:
        raise ValueError(
            f"imbalance {mu} needs n_hidden <= {'the number of inputs' if mu > 0 else 'the rank of P'}, {room}, "
            f"got {n_hidden}"
        )
    if mu > 0:
        inputs = np.linalg.qr(rng.standard_normal((n_in, n_hidden)))[0]
        _, strength, hidden = np.linalg.svd(P @ W2)
        square = mu + np.append(strength**2, np.zeros(n_hidden - len(strength)))
        return (hidden.T * np.sqrt(square)) @ inputs.T, W2
    if mu < 0:
        W1 = scale * rng.standard_normal((n_hidden, n_in))
        hidden, strength, _ = np.linalg.svd(W1)
        square = -mu + np.append(strength**2, np.zeros(n_hidden - len(strength)))
        seen = np.linalg.svd(P, full_matrices=False)[0][:, :room]
        turned = seen @ np.linalg.qr(rng.standard_normal((room, n_hidden)))[0]
        back = np.linalg.pinv(P)
        return W1, W2 + back @ ((turned * np.sqrt(square)) @ hidden.T - P @ W2)
    _, strength, hidden = np.linalg.svd(P @ W2, full_matrices=False)
    kept, excess = hidden[:n_in], hidden[n_in:]
    if len(excess):
        W2 = W2 - np.linalg.pinv(P) @ (P @ (W2 @ excess.T)) @ excess
    inputs = np.linalg.qr(rng.standard_normal((n_in, len(kept))))[0]
    return (kept.T * strength[: len(kept)]) @ inputs.T, W2


def conserved(W1: Any, W2: Any, *, P: Any = None, Q: Any = None, B: Any = None) -> np.ndarray:
    r"""Return the matrix that learning without weight decay conserves, for the rule that the arguments describe.

    .. math::
        W_1 W_1^\top - W_2^\top M W_2 - (DPW_2) - (DPW_2)^\top, \quad D = Q^\top - W_2^\top P^\top, \qquad
        \text{or} \qquad W_1 W_1^\top - (B^\top W_2) - (B^\top W_2)^\top

    Parameters
    ----------
    W1 : array_like, shape (..., hidden, in)
        First layer; leading axes (times, runs) are kept.
    W2 : array_like, shape (..., out, hidden)
        Second layer.
    P : array_like, shape (rank, out), optional
        Fixed reader of the channel; without Q the channel is taken to be aligned, Q = P @ W2. None is the identity,
        so that without any of P, Q and B the rule is backpropagation.
    Q : array_like, shape (..., rank, hidden), optional
        Learned writer of the channel (Kolen-Pollack), at the same times as the weights.
    B : array_like, shape (out, hidden), optional
        Fixed feedback of any rank in the place of W2, shaped like it (feedback alignment); excludes P and Q.

    Returns
    -------
    numpy.ndarray, shape (..., hidden, hidden)

    Raises
    ------
    ValueError
        If B is given together with P or Q, a shape does not fit, or an entry is not finite.

    Notes
    -----
    Exact for the gradient flow at equal rates of W1, W2 and Q on any data (no whitening needed). With weight decay
    the mismatch D decays as exp(-weight_decay * t), and the first matrix, where D = 0, as its square.
    Derived in :doc:`/derivations/m_balancedness`, :doc:`/derivations/constant_mismatch_invariant` and
    :doc:`/derivations/fixed_feedback_invariant`; checked in ``tests/test_theory_balance.py`` along integrated flows,
    for right and wrong rules.

    References
    ----------
    :cite:p:`kolenpollack1994,fukumizu1998,akrout2019`

    Examples
    --------
    >>> import numpy as np
    >>> W1, W2 = np.array([[1.0, 2.0]]), np.array([[3.0]])
    >>> conserved(W1, W2), conserved(W1, W2, P=[[0.5]]), conserved(W1, W2, B=[[1.0]])
    (array([[-4.]]), array([[2.75]]), array([[-1.]]))
    """
    W1, W2 = real_array("W1", W1), real_array("W2", W2)
    if W1.ndim < 2 or W2.ndim < 2 or W1.shape[:-2] != W2.shape[:-2] or W1.shape[-2] != W2.shape[-1]:
        raise ValueError(
            f"W1 has shape {W1.shape} and W2 {W2.shape}, expected (..., hidden, in) and (..., out, hidden)"
        )
    n_out, n_hidden = W2.shape[-2:]
    if B is not None:
        if P is not None or Q is not None:
            raise ValueError("B describes the whole feedback: give either B, or P and Q")
        return invariant(W1, W2, B=real_array("B", B, (n_out, n_hidden)))
    P = None if P is None else real_array("P", P, ("rank", n_out))
    if Q is None:
        return invariant(W1, W2, P=P)
    Q, seen = real_array("Q", Q), W2.shape if P is None else (*W2.shape[:-2], len(P), n_hidden)
    if Q.shape != seen:
        raise ValueError(f"Q has shape {Q.shape}, expected that of P @ W2, {seen}")
    return invariant(W1, W2, P=P, Q=Q)


def mirror_error(t: Any, D0: Any, *, weight_decay: float) -> np.ndarray:
    r"""Return how far a Kolen-Pollack channel is from alignment at time t.

    .. math:: D(t) = Q - P W_2 = e^{-\lambda t} D(0)

    Parameters
    ----------
    t : array_like, shape (...)
        Times >= 0, in units of tau = 1 / learning rate.
    D0 : array_like, shape (rank, hidden)
        Q - P @ W2 at t = 0.
    weight_decay : float
        Decay of both W2 and Q, in units of 1 / tau; without it the mismatch stays for ever.

    Returns
    -------
    numpy.ndarray, shape (..., rank, hidden)

    Raises
    ------
    ValueError
        If a time or the decay is negative, or an entry is not finite.

    Notes
    -----
    Exact for a fixed P and equal rates of W2 and Q, on any data and at any depth, since both follow the same
    gradient: P dW2/dt and dQ/dt differ by their decay only. Not for Adam, whose steps are not linear in the gradient.
    Derived in :doc:`/derivations/mirror_alignment`, checked in ``tests/test_theory_balance.py``.

    References
    ----------
    :cite:p:`kolenpollack1994,akrout2019`

    Examples
    --------
    >>> mirror_error([0.0, 10.0], [[1.0, -2.0]], weight_decay=0.1)
    array([[[ 1.        , -2.        ]],
           [[ 0.3678..., -0.7357...]]])
    """
    t, D0 = non_negative("t", t), real_array("D0", D0, ("rank", "hidden"))
    return np.exp(-real("weight_decay", weight_decay, at_least=0.0) * t)[..., None, None] * D0
