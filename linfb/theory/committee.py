"""Online learning of a committee machine in the limit of many inputs: the flow of its order parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linfb._checks import choice, covariance, real, real_array, times_array
from linfb.theory._gaussian import MOMENTS, PAIRS

EVALUATIONS = 200_000
"""How often the flow's velocity may be evaluated before it is said to diverge."""


@dataclass(frozen=True)
class CommitteeLearning:
    """What a student and its teacher have in common at each time.

    Parameters
    ----------
    overlaps : numpy.ndarray, shape (time, field, field)
        Covariance of the local fields, the student's hidden units first, then the teacher's.
    readout : numpy.ndarray, shape (time, out, hidden)
        The student's second layer.
    feedback : numpy.ndarray, shape (time, out, hidden)
        What the error comes back through; it is shaped like the readout.
    loss : numpy.ndarray, shape (time,)
        Half the squared error on new inputs, summed over outputs, without the noise of their labels.
    """

    overlaps: np.ndarray
    readout: np.ndarray
    feedback: np.ndarray
    loss: np.ndarray


def committee_learning(
    times: Any,
    overlaps: Any,
    readout: Any,
    teacher: Any,
    *,
    P: Any = None,
    B: Any = None,
    activation: str = "erf",
    learning_rate: float = 1.0,
    readout_rate: float | None = None,
    noise: float = 0.0,
) -> CommitteeLearning:
    r"""Return how a committee machine learns online from a teacher, for backpropagation, aligned and fixed feedback.

    Student and teacher are :math:`\hat y = V\phi(\lambda)`, :math:`y = V^*\phi(\nu) + \zeta` with local fields
    :math:`\lambda = W x/\sqrt n` and :math:`\nu = W^* x/\sqrt n` of a fresh normal input at every step; C is the
    covariance of all fields u, and :math:`A = (V, -V^*)`, so that the error is :math:`A\phi(u) - \zeta`. With n
    steps as the unit of time,

    .. math::
        \dot C_{ij} &= -\eta\,(G_{ij} + G_{ji}) + \eta^2 \sum_{kl} F_{ik} F_{jl}
            \langle\phi'_i\phi'_j\phi_k\phi_l\rangle + \eta^2\sigma^2 (B^\top B)_{ij} \langle\phi'_i\phi'_j\rangle, \\
        G_{ij} &= \sum_k F_{ik} \langle\phi'_i u_j \phi_k\rangle, \qquad F = B^\top A, \qquad
        \dot V = -\eta_V\, A\,\langle\phi\phi^\top\rangle,

    where G is zero for the teacher's units i, the terms in :math:`\eta^2` are absent between student and teacher, and
    the last product keeps the student's columns.

    Parameters
    ----------
    times : array_like, shape (time,)
        Increasing times >= 0, in units of n steps.
    overlaps : array_like, shape (hidden + teacher, hidden + teacher)
        Covariance of the local fields at time 0: student's units, then teacher's.
    readout : array_like, shape (out, hidden)
        V at time 0.
    teacher : array_like, shape (out, teacher)
        The teacher's second layer.
    P : array_like, shape (rank, out), optional
        Fixed reader of a channel whose mirror is aligned, B = P^T P V at all times. Without P and B the rule is
        backpropagation, B = V.
    B : array_like, shape (out, hidden), optional
        Constant feedback of any rank in the place of V (direct feedback alignment; Q^T P of fixed Q and P is such a B
        once transposed); excludes P.
    activation : {"erf", "linear"}
        The hidden units' function; erf is erf(u / sqrt 2).
    learning_rate : float
        :math:`\eta` >= 0, of the first layer: a step is :math:`\eta/\sqrt n` times the gradient by W.
    readout_rate : float, optional
        :math:`\eta_V` >= 0, of the readout, whose step is :math:`\eta_V/n` times its gradient; by default the same.
    noise : float
        Standard deviation of the label noise of each output, :math:`\sigma` >= 0.

    Returns
    -------
    CommitteeLearning

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, P and B are both given, overlaps are not a covariance, times do not increase or an
        argument is out of range.
    RuntimeError
        If the flow diverges or becomes stiff, as it does at a high learning rate.

    Notes
    -----
    Exact for n to infinity at fixed numbers of units; integrated to a relative accuracy of 1e-9. A run at finite n
    deviates by O(1/sqrt n): measured in ``tests/test_theory_committee.py``. The averages, derived in
    :doc:`/derivations/committee_averages`, are those of Saad and Solla; for one output and B = V or constant B
    these are the equations of Goldt et al. and Refinetti et al. Under an aligned channel W and PV follow
    backpropagation from the teacher :math:`PV^*`, whatever the activation: so a channel of rank one can teach all
    hidden units.

    References
    ----------
    :cite:p:`saadsolla1995,goldt2019,refinetti2021`

    Examples
    --------
    One unit learns from one.

    >>> import numpy as np
    >>> overlaps = [[0.25, 0.1], [0.1, 1.0]]
    >>> run = committee_learning([0.0, 5.0, 50.0], overlaps, [[0.5]], [[1.0]])
    >>> run.overlaps[:, 0, 1]
    array([0.1       , 0.767..., 0.986...])
    >>> [float(f"{loss:.3g}") for loss in run.loss]
    [0.163, 0.0297, 2.17e-06]
    """
    times = times_array("times", times)
    readout = real_array("readout", readout, ("out", "hidden"))
    n_out, hidden = readout.shape
    teacher = real_array("teacher", teacher, (n_out, "teacher"))
    fields = hidden + teacher.shape[1]
    C = covariance("overlaps", overlaps, fields)
    moments = MOMENTS[choice("activation", activation, MOMENTS)]
    rate = real("learning_rate", learning_rate, at_least=0.0)
    own_rate = rate if readout_rate is None else real("readout_rate", readout_rate, at_least=0.0)
    variance = real("noise", noise, at_least=0.0) ** 2
    feedback = _feedback(readout, P, B)

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        C, V = flat[: fields**2].reshape(fields, fields), flat[fields**2 :].reshape(n_out, hidden)
        product, single, slopes, both = moments((C + C.T) / 2, hidden)  # an asymmetry by rounding would grow
        A, B = np.concatenate([V, -teacher], axis=1), feedback(V)
        F, moved = B.T @ A, np.zeros_like(C)
        moved[:hidden] = -rate * (single @ F[:, :, None])[..., 0]
        moved = moved + moved.T
        squares = np.sum((both @ F[:, :, None])[..., 0] * F[:, None], axis=-1)
        moved[:hidden, :hidden] += rate**2 * (squares + variance * (B.T @ B) * slopes)
        return np.concatenate([moved.ravel(), (-own_rate * A @ product[:, :hidden]).ravel()])

    states = _integrated(velocity, np.concatenate([C.ravel(), readout.ravel()]), times)
    C = states[:, : fields**2].reshape(-1, fields, fields)
    V = states[:, fields**2 :].reshape(-1, n_out, hidden)
    loss = committee_loss(C, V, teacher, activation=activation)
    return CommitteeLearning(C, V, np.array([feedback(v) for v in V]), loss)


def committee_loss(overlaps: Any, readout: Any, teacher: Any, *, activation: str = "erf") -> np.ndarray:
    r"""Return half the squared error of a committee machine on new inputs, summed over outputs, without label noise.

    .. math:: \tfrac12 \sum_{kl} (A^\top A)_{kl}\, \langle\phi_k\phi_l\rangle, \qquad A = (V, -V^*)

    Parameters
    ----------
    overlaps : array_like, shape (..., hidden + teacher, hidden + teacher)
        Covariance of the local fields: student's units, then teacher's.
    readout : array_like, shape (..., out, hidden)
        V.
    teacher : array_like, shape (out, teacher)
        The teacher's second layer.
    activation : {"erf", "linear", "relu"}
        The hidden units' function; erf is erf(u / sqrt 2).

    Returns
    -------
    numpy.ndarray, shape (...)

    Raises
    ------
    TypeError, ValueError
        If the activation is none of these, a shape does not fit or an entry is not finite.

    Notes
    -----
    Exact for normal inputs of any number, given the weights: fields of x / sqrt n have the covariance W W^T / n.
    Derived in :doc:`/derivations/committee_averages`, checked in ``tests/test_theory_committee.py``.

    References
    ----------
    :cite:p:`saadsolla1995`

    Examples
    --------
    >>> committee_loss([[1.0, 1.0], [1.0, 1.0]], [[0.0]], [[1.0]]).round(4)  # arcsin(1/2) / pi
    np.float64(0.1667)
    """
    product, _ = PAIRS[choice("activation", activation, PAIRS)]
    C, V = real_array("overlaps", overlaps), real_array("readout", readout)
    teacher = real_array("teacher", teacher, ("out", "teacher"))
    fields = V.shape[-1] + teacher.shape[1]
    if V.ndim < 2 or V.shape[-2] != len(teacher) or C.shape != (*V.shape[:-2], fields, fields):
        raise ValueError(
            f"overlaps have shape {C.shape}, readout {V.shape} and teacher {teacher.shape}, expected "
            "(..., hidden + teacher, hidden + teacher), (..., out, hidden) and (out, teacher)"
        )
    variance = np.diagonal(C, axis1=-2, axis2=-1)
    A = np.concatenate([V, np.broadcast_to(-teacher, (*V.shape[:-2], *teacher.shape))], axis=-1)
    return 0.5 * np.sum((A @ product(variance[..., :, None], C, variance[..., None, :])) * A, axis=(-2, -1))


def _feedback(readout: np.ndarray, P: Any, B: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the feedback as a function of the readout."""
    if B is not None:
        if P is not None:
            raise ValueError("B describes the whole feedback: give either B or P")
        constant = real_array("B", B, readout.shape)
        return lambda V: constant
    if P is None:
        return lambda V: V
    P = real_array("P", P, ("rank", len(readout)))
    metric = P.T @ P
    return lambda V: metric @ V


def _integrated(
    velocity: Callable[[float, np.ndarray], np.ndarray], start: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Return the states at all times, or say when they diverge."""
    from scipy.integrate import solve_ivp

    if times[-1] == 0:
        return start[None]

    count = 0

    def counted(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        if count > EVALUATIONS or not np.all(np.isfinite(state)):
            raise RuntimeError(f"the flow cannot be followed beyond time {t:.3g}: lower learning_rate")
        return velocity(t, state)

    return solve_ivp(counted, (0.0, times[-1]), start, method="DOP853", t_eval=times, rtol=1e-9, atol=1e-12).y.T
