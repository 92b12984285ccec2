"""Channels that learn: the closed flow of a network's modes and its reader, and how long one mode takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import hyp2f1

from linfb._checks import choice, covariance, real, real_array, times_array
from linfb.theory.modes import non_negative, together

MIRRORS = ("exact", "kolen_pollack", "weight_mirror")
SLOWEST = 0.05
"""Smallest product of rate and strength for which the hypergeometric functions are evaluated."""


@dataclass(frozen=True)
class AdaptiveModes:
    """What a network and its channel have of the task's modes at each time.

    Attributes
    ----------
    map : numpy.ndarray, shape (time, mode, mode)
        U^T W2 W1 V, with the strengths of the modes on the diagonal.
    overlap : numpy.ndarray, shape (time, mode, mode)
        K = U^T P^T P U, what the reader sees of the modes' output directions.
    gram : numpy.ndarray, shape (time, 3 mode, 3 mode), or 2 mode with an exact mirror
        Products of the hidden vectors W1 V, W2^T U and Q P U (code: Q^T P U).
    """

    map: np.ndarray
    overlap: np.ndarray
    gram: np.ndarray


def adaptive_modes(
    times: Any,
    s: Any,
    overlap: Any,
    gram: Any,
    *,
    on: str = "errors",
    rate: float = 1.0,
    mirror: str = "kolen_pollack",
    mirror_rate: float = 1.0,
    weight_decay: float = 0.0,
) -> AdaptiveModes:
    r"""Return how the modes of a task are learned behind an Oja reader, whatever the sizes of the network.

    With the task's modes U and V, :math:`F = S - U^\top W_2 W_1 V` and the reader's :math:`K = U^\top P^\top P U`,

    .. math::
        \dot K &= \rho\,(\Gamma K + K\Gamma - 2K\Gamma K), \qquad \Gamma = F F^\top \text{ or } S^2, \\
        \dot G &= G T + T^\top G, \qquad G = H^\top H, \quad H = (W_1 V,\; W_2^\top U,\; Q P U), \\
        T &= \begin{pmatrix} -\lambda & F^\top & F^\top K \\ 0 & -\lambda & 0 \\
             F & 0 & \rho\,\Gamma (I - K) - \lambda \end{pmatrix}

    for a Kolen-Pollack mirror. A weight mirror has zero, :math:`\gamma K` and
    :math:`\rho\,\Gamma(I - K) - \gamma` in the last column; an exact mirror needs no third block, :math:`Q P U =
    W_2^\top U K`.

    Parameters
    ----------
    times : array_like, shape (time,)
        Increasing times >= 0, in units of tau = 1 / learning rate.
    s : array_like, shape (mode,)
        Strengths of the task's modes, >= 0; zeros are directions of input and output without a task.
    overlap : array_like, shape (mode, mode)
        K at time 0, with eigenvalues between 0 and 1: the identity for a reader of full rank.
    gram : array_like, shape (3 mode, 3 mode)
        G at time 0; shape (2 mode, 2 mode), without the last block, for an exact mirror.
    on : {"errors", "labels"}
        What the reader follows, per sample.
    rate : float
        The reader's rate :math:`\rho` relative to that of the weights, >= 0.
    mirror : {"kolen_pollack", "weight_mirror", "exact"}
        How Q follows the weights; "exact" is Q = W2^T P^T.
    mirror_rate : float
        The weight mirror's rate :math:`\gamma` >= 0; the other mirrors have none.
    weight_decay : float
        Decay :math:`\lambda` of W1, W2 and a Kolen-Pollack Q, in units of 1 / tau.

    Returns
    -------
    AdaptiveModes

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, times do not increase, a matrix is no covariance or an argument is out of range.
    RuntimeError
        If the integration fails.

    Notes
    -----
    Exact for whitened inputs, a reader with orthonormal rows, and weights that have nothing outside the modes:
    W1 = (W1 V) V^T and W2 = U (U^T W2). What they have outside needs further modes of strength zero. Integrated to a
    relative accuracy of 1e-12. So a network learns in the same way at any width and any number of inputs and outputs if
    these products are the same at the start.
    Derived in :doc:`/derivations/adaptive_modes`; checked in ``tests/test_theory_adaptive.py`` against
    :func:`linfb.simulate`.

    References
    ----------
    :cite:p:`hanut2025,oja1989`

    Examples
    --------
    One mode, with weights of size 0.1 along one hidden direction, of which the reader sees a quarter at first.

    >>> import numpy as np
    >>> found = adaptive_modes([0.0, 2.0, 20.0], [2.0], [[0.25]], np.full((2, 2), 0.01), mirror="exact")
    >>> found.map.ravel(), found.overlap.ravel()
    (array([0.01 ..., 1.823..., 2. ...]), array([0.25 ..., 0.9997..., 0.9997...]))
    """
    times = times_array("times", times)
    s = non_negative("s", real_array("s", s, ("mode",)))
    modes, mirror = s.size, choice("mirror", mirror, MIRRORS)
    K = covariance("overlap", overlap, modes)
    if np.linalg.eigvalsh(K).max(initial=0.0) > 1 + 1e-8:
        raise ValueError(f"overlap must have eigenvalues of at most 1, got {np.linalg.eigvalsh(K)}")
    G = covariance("gram", gram, (2 if mirror == "exact" else 3) * modes)
    labels = choice("on", on, ("errors", "labels")) == "labels"
    rate, gamma = real("rate", rate, at_least=0.0), real("mirror_rate", mirror_rate, at_least=0.0)
    decay = real("weight_decay", weight_decay, at_least=0.0)
    S, one, T = np.diag(s), np.eye(modes), np.zeros_like(G)
    first, readout, written = (slice(i * modes, (i + 1) * modes) for i in range(3))
    T[first, first] = T[readout, readout] = -decay * one

    def parts(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: K.size].reshape(K.shape), flat[K.size :].reshape(G.shape)

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        K, G = parts(flat)
        F = S - G[readout, first]
        turn = rate * (S @ S if labels else F @ F.T) @ (one - K)  # what P U is multiplied by
        T[first, readout] = F.T
        if mirror == "exact":
            T[readout, first] = K @ F
        else:
            T[written, first] = F
            T[written, written] = turn - (decay if mirror == "kolen_pollack" else gamma) * one
            if mirror == "kolen_pollack":
                T[first, written] = F.T @ K
            else:
                T[readout, written] = gamma * K
        seen, grown = K @ turn, G @ T
        return np.concatenate([(seen + seen.T).ravel(), (grown + grown.T).ravel()])

    state, now, states = np.concatenate([K.ravel(), G.ravel()]), 0.0, []
    floor = 1e-13 * max(float(np.trace(G)), np.finfo(float).tiny)
    for time in times:  # steps end on the times: interpolation is less accurate
        if time > now:
            run = solve_ivp(velocity, (now, time), state, method="DOP853", rtol=1e-12, atol=floor)
            if not run.success:
                raise RuntimeError(f"adaptive_modes: the integration failed at t = {run.t[-1]:.6g}: {run.message}")
            state, now = run.y[:, -1], time
        states.append(parts(state))
    overlaps, grams = (np.stack(each) for each in zip(*states, strict=True))
    return AdaptiveModes(grams[:, readout, first], overlaps, grams)


def adaptive_start(s: Any, a: Any, c: Any, kappa: Any, *, q: Any = None, rate: float = 1.0) -> np.ndarray:
    r"""Return the start from which backpropagation would learn a mode as it is learned behind an Oja reader.

    .. math::
        c_\text{eff} &= \tfrac14\, \kappa^{2\beta} \bigl[\,
            a\, F(\beta, \beta + 1; 2\beta + 1; 1 - \kappa) + c\, F(\beta, \beta; 2\beta + 1; 1 - \kappa) \bigr]^2
            && \text{(exact mirror)} \\
        c_\text{eff} &= \tfrac14\, \Bigl(\frac{2\sqrt\kappa}{1 + \sqrt\kappa}\Bigr)^{4\beta} (a + q)^2
            && \text{(Kolen-Pollack)} , \qquad \beta = \frac{1}{2\rho s} ,

    with the hypergeometric function F.

    Parameters
    ----------
    s : array_like
        Singular value of the task, > 0.
    a : array_like
        Size of W1 = a g v^T at t = 0, >= 0, with a hidden unit vector g.
    c : array_like
        Size of W2 = c u g^T at t = 0, >= 0.
    kappa : array_like
        Share of the output direction u that the reader sees at t = 0, in (0, 1].
    q : array_like, optional
        Size of a Kolen-Pollack mirror Q = q g p^T at t = 0, >= 0, where p is the channel's direction, P u =
        sqrt(kappa) p; aligned it is sqrt(kappa) c. None is an exact mirror.
    rate : float
        The reader's rate :math:`\rho` relative to that of the weights, > 0; at least 0.05 / s with an exact mirror.

    Returns
    -------
    numpy.ndarray or float
        Strengths, with the shape to which the arguments broadcast.

    Raises
    ------
    TypeError, ValueError
        If an argument is outside its range or not finite, or the shapes do not broadcast.

    Notes
    -----
    While the mode is small its flow is linear, and its strength tends to :math:`c_\text{eff}\, e^{2st}` as the reader
    finds the mode: exact for that flow. From starts of scale :math:`\epsilon` the whole curve is
    ``mode_strength(t, s, adaptive_start(...))``, up to :math:`O(\epsilon^p)` with the smaller of 2 (Kolen-Pollack: 1)
    and :math:`2\rho s` as p, whether the reader follows labels or errors. With weight decay give it to
    :func:`linfb.theory.mode_strength`. Hidden vectors that are not parallel add as vectors: with W1 v and W2^T u for a
    and c the bracket is a vector, and its norm counts. One mode, whitened inputs, nothing outside the mode.
    Derived in :doc:`/derivations/adaptive_start`; checked in ``tests/test_theory_adaptive.py``, with the order.

    References
    ----------
    :cite:p:`hanut2025,oja1989`

    Examples
    --------
    >>> adaptive_start(2.0, 0.01, 0.01, kappa=[0.1, 1.0])
    array([5.3...e-05, 1.0...e-04])
    """
    s, a, c, kappa, q, rate = _checked_mode(s, a, c, kappa, q, rate)
    return np.exp(_log_start(s, a, c, kappa, q, rate))[()]


def adaptive_half_time(s: Any, a: Any, c: Any, kappa: Any, *, q: Any = None, rate: float = 1.0) -> np.ndarray:
    r"""Return when a mode behind an Oja reader is half learned, from a small start.

    .. math::
        t_{1/2} = t_\infty
            + \frac{1}{\rho s^2} \ln\Bigl[ 1 - \frac{1 - \kappa}{4\kappa}\, e^{-2\rho s^2 t_\infty} \Bigr], \qquad
        t_\infty = \frac{\ln(s / c_\text{eff} - 1)}{2s}

    with the start of :func:`adaptive_start`; with a Kolen-Pollack mirror :math:`\ln\kappa' / (4s\sqrt{\kappa'})` is
    added, where :math:`\kappa'` is what the reader sees at that time.

    Parameters
    ----------
    s, a, c, kappa, q, rate
        As in :func:`adaptive_start`; the start small, :math:`c_\text{eff} < s/2`.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, with the shape to which the arguments broadcast.

    Raises
    ------
    TypeError, ValueError
        As in :func:`adaptive_start`, or if the start is not small.

    Notes
    -----
    :math:`t_\infty` is what is left for small starts of scale :math:`\epsilon` at a given reader: the reader has found
    the mode before it is learned. With a Kolen-Pollack mirror

    .. math::
        t_\infty \simeq \frac1s \ln\frac{2\sqrt s}{a + q}
            + \frac{1}{\rho s^2} \ln\frac{1 + \sqrt\kappa}{2\sqrt\kappa} ,

    backpropagation's time and what finding the mode costs. The other terms are of the order of the error,
    :math:`O(\epsilon^p)` with p as in :func:`adaptive_start` (for labels and an exact mirror smaller), and make the
    time right for a slow reader too: as :math:`\rho \to 0` it becomes that of a fixed channel,
    :func:`linfb.theory.time_to_half`. They are the time at which :math:`\int \sqrt\kappa\,dt`, elementary as long as
    the reader follows labels or the mode is small, is used up.
    Checked in ``tests/test_theory_adaptive.py`` against integrated flows, with the order.

    References
    ----------
    :cite:p:`hanut2025,oja1989`

    Examples
    --------
    >>> adaptive_half_time(2.0, 1e-3, 1e-3, kappa=[0.01, 0.1, 1.0]).round(3)
    array([3.966, 3.785, 3.627])
    """
    s, a, c, kappa, q, rate = _checked_mode(s, a, c, kappa, q, rate)
    log_start = _log_start(s, a, c, kappa, q, rate)
    share = np.exp(log_start) / s
    if np.any(share >= 0.5):
        raise ValueError(f"a and c must be small, but the mode starts like one at {share.max():.3g} of s")
    odds = np.log(s) - log_start + np.log1p(-share)
    unseen = (1 - kappa) / (4 * kappa) * np.exp(-rate * s * odds)
    if np.any(unseen >= 1):
        raise ValueError("a and c must be small: the mode would be learned before the reader moves")
    time = odds / (2 * s) + np.log1p(-unseen) / (rate * s**2)
    if q is not None:
        seen = kappa / (kappa + (1 - kappa) * np.exp(-2 * rate * s**2 * time))
        time = time + np.log(seen) / (4 * s * np.sqrt(seen))
    return time[()]


def _checked_mode(s: Any, a: Any, c: Any, kappa: Any, q: Any, rate: float) -> tuple[Any, ...]:
    """Return one mode's arguments as broadcast arrays (q None for an exact mirror) and the rate."""
    named = {"s": s, "a": a, "c": c, "kappa": kappa} | ({} if q is None else {"q": q})
    arrays = {name: non_negative(name, value) for name, value in named.items()}
    together(**arrays)
    s, a, c, kappa, *mirror = np.broadcast_arrays(*arrays.values())
    rate = real("rate", rate, above=0.0)
    if np.any(s == 0):
        raise ValueError("s must be > 0")
    if np.any(kappa == 0) or np.any(kappa > 1):
        raise ValueError(f"kappa must be > 0 and at most 1, got {kappa}")
    if np.any(a + (mirror[0] if mirror else c) == 0):
        raise ValueError(f"a must be > 0 where {'q' if mirror else 'c'} is zero")
    if not mirror and np.any(rate * s < SLOWEST):
        raise ValueError(f"rate must be at least {SLOWEST} / s with an exact mirror, got {rate} for s = {s.min()}")
    return s, a, c, kappa, mirror[0] if mirror else None, rate


def _log_start(s: Any, a: Any, c: Any, kappa: Any, q: Any, rate: float) -> np.ndarray:
    """Return the logarithm of the strength from which backpropagation would do the same."""
    beta, root = 1 / (2 * rate * s), np.sqrt(kappa)
    if q is not None:
        return 2 * np.log((a + q) / 2) + 4 * beta * np.log(2 * root / (1 + root))
    sizes = (hyp2f1(beta, beta + more, 2 * beta + 1, 1 - kappa) for more in (1, 0))
    return 2 * np.log(sum(x * size for x, size in zip((a, c), sizes, strict=True)) / 2) + 2 * beta * np.log(kappa)
