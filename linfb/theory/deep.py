r"""One mode in a deep linear network: layers that each listen to the one above through a channel of its own.

Channel j carries the error of layer j + 1 to layer j and sees the share :math:`\kappa_j = g_{j+1}^\top M_j g_{j+1}` of
the mode's direction :math:`g_{j+1}` there. With :math:`W_l = a_l\, g_l g_{l-1}^\top` and aligned mirrors

.. math::
    \dot a_l = K_l \prod_{j \ne l} a_j\,(s - c) - \lambda a_l, \qquad
    K_l = \prod_{j \ge l} \kappa_j, \qquad c = \prod_l a_l .
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma

from linfb._checks import integer, real, real_array
from linfb.observables.measures import invariant
from linfb.theory.modes import non_negative

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_LATE = 40.0  # log odds of c / s beyond which s - c is rounding


def deep_conserved(weights: Sequence[Any], readers: Sequence[Any]) -> tuple[np.ndarray, ...]:
    r"""Return the matrices that learning without weight decay conserves in a network with aligned mirrors.

    .. math:: W_l W_l^\top - W_{l+1}^\top M_l W_{l+1}, \qquad M_l = P_l^\top P_l

    Parameters
    ----------
    weights : sequence of array_like, shapes (..., out, in)
        W_1 ... W_L; leading axes (times, runs) are kept.
    readers : sequence of (array_like, shape (rank, out), or None)
        P_1 ... P_{L-1}, of the channels below W_2 ... W_L; None is the identity.

    Returns
    -------
    tuple of numpy.ndarray, shapes (..., hidden, hidden)
        One per hidden layer, from below.

    Raises
    ------
    ValueError
        If a shape or the number of readers does not fit, or an entry is not finite.

    Notes
    -----
    Exact for the gradient flow at equal rates on any data; with weight decay each decays as
    exp(-2 weight_decay t). At rest under weight decay, and up to the square of a small start without it, the rank of
    every layer is therefore at most that of the channel above it. Derived in
    :doc:`/derivations/deep_invariants_three` and :doc:`/derivations/deep_invariants_four`, checked along flows in
    ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`saxe2013,kolenpollack1994`

    Examples
    --------
    >>> deep_conserved([[[1.0]], [[2.0]], [[3.0]]], [[[0.5]], None])
    (array([[0.]]), array([[-5.]]))
    """
    _sequences(weights=weights, readers=readers)
    layers = [real_array(f"weights[{i}]", W) for i, W in enumerate(weights)]
    if len(layers) < 2 or len(readers) != len(layers) - 1:
        raise ValueError(f"readers must be one fewer than weights, got {len(readers)} for {len(layers)} layers")
    found = []
    for i, (below, above, P) in enumerate(zip(layers, layers[1:], readers, strict=False)):
        if below.ndim < 2 or above.ndim < 2 or below.shape[-2] != above.shape[-1]:
            raise ValueError(f"weights[{i}] has shape {below.shape}, which does not fit weights[{i + 1}] {above.shape}")
        P = None if P is None else real_array(f"readers[{i}]", P, ("rank", above.shape[-2]))
        found.append(invariant(below, above, P=P))
    return tuple(found)


def deep_slowdown(kappa: Any) -> np.ndarray:
    r"""Return how many times slower a balanced mode is learned than by backpropagation.

    .. math:: \frac1\Gamma = \prod_{j=1}^{L-1} \kappa_j^{-j/L}

    Parameters
    ----------
    kappa : array_like, shape (..., channel)
        Shares of the channels from below, >= 0, one fewer than layers.

    Returns
    -------
    numpy.ndarray or float, shape (...)
        The factor; infinite where a channel sees nothing.

    Raises
    ------
    ValueError
        If there is no channel, or a share is negative or not finite.

    Notes
    -----
    A balanced mode, :math:`a_l^2 = \kappa_l a_{l+1}^2`, obeys :math:`\dot c = L\Gamma c^{2-2/L}(s - c) - L\lambda c`:
    the channels change nothing but the clock. The exponent j / L counts the layers that hear through channel j: all
    L - 1 hidden layers hear through the one at the output, only the first through the lowest, which therefore tolerates
    the smallest share. Derived in :doc:`/derivations/deep_mode`, checked in ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`saxe2013,hanut2025`

    Examples
    --------
    >>> deep_slowdown([[0.125, 1.0], [1.0, 0.125], [1.0, 0.0]])
    array([ 2.,  4., inf])
    """
    kappa = _shares(kappa)
    n_layers = kappa.shape[-1] + 1
    with np.errstate(divide="ignore"):
        return np.prod(kappa ** (-np.arange(1, n_layers) / n_layers), axis=-1)[()]


def _sequences(**arguments: Any) -> None:
    """Refuse what has no entries, one per layer or channel."""
    for name, value in arguments.items():
        if not hasattr(value, "__len__") or isinstance(value, str):
            raise TypeError(f"{name} must be a sequence, got {value!r}")


def typical_deep_slowdown(ranks: Sequence[int], widths: Sequence[int]) -> float:
    r"""Return the geometric mean of :func:`deep_slowdown` over random channels, for a mode that ignores them.

    .. math::
        \exp\Bigl\langle \ln\tfrac1\Gamma \Bigr\rangle = \exp\sum_{j=1}^{L-1}
        \tfrac jL\Bigl(\psi\bigl(\tfrac{n_j}2\bigr) - \psi\bigl(\tfrac{r_j}2\bigr)\Bigr)

    Parameters
    ----------
    ranks : sequence of int, length channel
        Ranks r_j of the channels from below, one fewer than layers.
    widths : sequence of int, length channel
        Widths n_j of the layers whose errors the channels read: those of layers 2 ... L.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a number is not a positive integer, a rank exceeds its width, or the lengths differ.

    Notes
    -----
    The readers have orthonormal rows, uniformly random and independent of each other, of the task and of the hidden
    directions; then each share is Beta distributed, with :math:`\psi` the digamma function. That holds for the output's
    direction always, for hidden directions if the start fixes them. For :math:`r_j \gg 1` the slow-down is about
    :math:`(n_j/r_j)^{j/L}`. Not derived: the mean logarithm
    of a Beta variable is known. Checked by z-scores in ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> round(typical_deep_slowdown([4, 16], [16, 16]), 3), round(typical_deep_slowdown([16, 4], [16, 16]), 3)
    (1.701, 2.892)
    """
    _sequences(ranks=ranks, widths=widths)
    if len(ranks) != len(widths) or not len(ranks):
        raise ValueError(f"ranks and widths must have one entry per channel, got {len(ranks)} and {len(widths)}")
    logarithm, n_layers = 0.0, len(ranks) + 1
    for j, (r, n) in enumerate(zip(ranks, widths, strict=True), 1):
        n = integer(f"widths[{j - 1}]", n, at_least=1)
        r = integer(f"ranks[{j - 1}]", r, at_least=1, at_most=n)
        logarithm += j / n_layers * float(digamma(n / 2) - digamma(r / 2))
    return float(np.exp(logarithm))


def deep_balanced_time(c: Any, s: Any, c0: Any, kappa: Any) -> np.ndarray:
    r"""Return when a balanced mode reaches the strength c, in closed form.

    .. math::
        t = \frac{G(c/s) - G(c_0/s)}{L\,\Gamma\,s^{2-2/L}}, \qquad
        G(y) = -\frac{y^{-(1-2/L)}}{1 - 2/L} - \sum_{k=0}^{L-1} \omega^{2k} \ln\bigl(1 - \omega^{-k} y^{1/L}\bigr),
        \qquad \omega = e^{2\pi i/L}

    with :math:`\ln y` for the first term if L = 2.

    Parameters
    ----------
    c : array_like
        Strengths in (0, s).
    s : array_like
        Singular value of the task, > 0.
    c0 : array_like
        Strength at t = 0, in (0, s).
    kappa : array_like, shape (channel,)
        Shares of the channels from below, > 0.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, with the shape to which c, s and c0 broadcast; negative if c < c0.

    Raises
    ------
    ValueError
        If an argument is outside its range or not finite, or shapes do not broadcast.

    Notes
    -----
    Assumptions as in :func:`deep_mode` and :math:`a_l^2 = \kappa_l a_{l+1}^2` at the start
    (:func:`deep_balanced_layers`). From small starts at L > 2 the time is
    :math:`c_0^{-(1-2/L)} / ((L-2)\Gamma s)` to leading order.
    Derived in :doc:`/derivations/deep_balanced_time`, checked in ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`saxe2013`

    Examples
    --------
    >>> deep_balanced_time(1.0, 2.0, 0.01, [0.25])
    np.float64(2.6466...)
    >>> deep_balanced_time(1.0, 2.0, 0.01, [1.0, 0.125]) / deep_balanced_time(1.0, 2.0, 0.01, [1.0, 1.0])
    np.float64(4.0)
    """
    c, s, c0 = (non_negative(name, value) for name, value in (("c", c), ("s", s), ("c0", c0)))
    slowdown = deep_slowdown(real_array("kappa", kappa, ("channel",)))
    for name, value in (("c", c), ("c0", c0)):
        if np.any(value <= 0) or np.any(value >= s):
            raise ValueError(f"{name} must be in (0, s), got {value} for s = {s}")
    n_layers = np.size(kappa) + 1
    power = 1 - 2 / n_layers
    times = _clock(c / s, n_layers) - _clock(c0 / s, n_layers)
    return (times * slowdown / (n_layers * s ** (1 + power)))[()]


def _clock(y: np.ndarray, n_layers: int) -> np.ndarray:
    """Return an integral of y^(2/L - 2) / (1 - y) over y."""
    roots = np.exp(2j * np.pi * np.arange(1, n_layers) / n_layers)
    z = y ** (1 / n_layers)
    regular = -np.log(-np.expm1(np.log(y) / n_layers))
    regular = regular - np.sum(roots**2 * np.log(1 - z[..., None] / roots), axis=-1).real
    power = 1 - 2 / n_layers
    return regular + (np.log(y) if n_layers == 2 else -(y**-power) / power)


def deep_balanced_layers(c: Any, kappa: Any) -> np.ndarray:
    r"""Return the strengths of the layers of a balanced mode, :math:`a_l^2 = \kappa_l a_{l+1}^2` with product c.

    Parameters
    ----------
    c : array_like, shape (...)
        Strength of the mode, >= 0.
    kappa : array_like, shape (channel,)
        Shares of the channels from below, > 0.

    Returns
    -------
    numpy.ndarray, shape (..., layer)

    Raises
    ------
    ValueError
        If an argument is outside its range or not finite.

    Notes
    -----
    Every flow with weight decay ends there, and every flow from a small start comes close to it.
    Derived in :doc:`/derivations/deep_mode`, checked in ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`saxe2013`

    Examples
    --------
    >>> deep_balanced_layers(1.0, [0.25, 1.0])
    array([0.6299..., 1.2599..., 1.2599...])
    """
    c, kappa = non_negative("c", c), _shares(real_array("kappa", kappa, ("channel",)))
    if np.any(kappa == 0):
        raise ValueError(f"kappa must be > 0 for a balanced mode, got {kappa}")
    top = (c * deep_slowdown(np.sqrt(kappa)) ** (kappa.size + 1)) ** (1 / (kappa.size + 1))
    return top[..., None] * np.sqrt(_gains(kappa))


def deep_time(c: Any, s: float, layers: Any, kappa: Any) -> np.ndarray:
    r"""Return when a mode reaches the strength c from any start of its layers, by one quadrature.

    .. math::
        a_l^2(\theta) = a_l^2(0) + K_l\,\theta, \qquad
        t = \int \frac{\mathrm d\theta}{2\,c(\theta)\,(s - c(\theta))}

    Parameters
    ----------
    c : array_like
        Strengths from that of the start up to, but not equal to, s.
    s, layers, kappa
        As in :func:`deep_mode`.

    Returns
    -------
    numpy.ndarray or float
        Times in units of tau = 1 / learning rate, with the shape of c.

    Raises
    ------
    TypeError, ValueError
        As in :func:`deep_mode`, and if c is not between the start and s.

    Notes
    -----
    With equal small starts :math:`a_l = \alpha` and three layers
    :math:`\alpha s t \to R_F(K_2, K_1, K_1K_2)`, Carlson's elliptic integral, with a relative error of
    order :math:`\alpha`. A channel that sees nothing freezes all layers below it and only delays the mode: D layers
    above it learn at the scale :math:`\alpha^l` of the frozen features of l layers, by a time of order
    :math:`\alpha^{-(L-2)}` as under backpropagation if D > 2, :math:`\alpha^{-(L-2)}\ln(1/\alpha)` if D = 2, but
    :math:`\alpha^{-2(L-1)}` at the output (D = 1). Derived in :doc:`/derivations/deep_mode`, checked in
    ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`saxe2013`

    Examples
    --------
    >>> [round(float(deep_time(1.0, 2.0, [0.1] * 3, kappa)), 2) for kappa in ([1.0, 1.0], [0.0, 1.0], [1.0, 0.0])]
    [4.66, 19.0, 6926.47]
    """
    s, squares, gains = _mode(s, layers, kappa)
    c = non_negative("c", c)
    start = np.sqrt(np.prod(squares))
    if np.any(c < start * (1 - 1e-12)) or np.any(c >= s):
        raise ValueError(f"c must be between the strength of the start, {start}, and s = {s}, got {c}")
    odds = np.log(np.maximum(c, start) / (s - c))
    edges, times = _table(s, squares, gains)
    panel = np.clip(np.searchsorted(edges, odds, side="right") - 1, 0, edges.size - 1)
    return (times[panel] + _between(edges[panel], odds, s, squares, gains))[()]


def deep_mode(t: Any, s: float, layers: Any, kappa: Any) -> np.ndarray:
    r"""Return the strengths of all layers of a mode at time t, from any start and without weight decay.

    Parameters
    ----------
    t : array_like, shape (...)
        Times >= 0, in units of tau = 1 / learning rate.
    s : float
        Singular value of the task, > 0.
    layers : array_like, shape (layer,)
        Strengths a_1 ... a_L at t = 0, > 0, with a product below s.
    kappa : array_like, shape (channel,)
        Shares of the channels from below, >= 0: one fewer than layers.

    Returns
    -------
    numpy.ndarray, shape (..., layer)
        Their product is the strength of the mode.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit or a number is outside its range or not finite.

    Notes
    -----
    Assumes whitened inputs, fixed readers, aligned mirrors and weights :math:`W_l = a_l g_l g_{l-1}^\top` with
    unit vectors, those at the ends being the task's: the flow never leaves this form, whatever the channels and
    widths. Exact: one quadrature (:func:`deep_time`), inverted to rounding. The hidden directions are the start's; a
    small random start makes them before it learns, and is then balanced up to its square.
    Derived in :doc:`/derivations/deep_mode`, checked in ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`saxe2013,hanut2025`

    Examples
    --------
    >>> deep_mode([0.0, 1e3], 2.0, [0.1, 0.1, 0.1], [0.25, 1.0]).round(4)
    array([[0.1   , 0.1   , 0.1   ],
           [0.7969, 1.5843, 1.5843]])
    """
    s, squares, gains = _mode(s, layers, kappa)
    t = non_negative("t", t)
    edges, times = _table(s, squares, gains)
    panel = np.clip(np.searchsorted(times, t, side="right") - 1, 0, edges.size - 1)
    left, right = edges[panel], edges[np.minimum(panel + 1, edges.size - 1)]
    late = panel == edges.size - 1
    odds = np.where(late, left + (t - times[panel]) / _pace(edges[-1], s, squares, gains), left)
    for _ in range(60):
        miss = t - times[panel] - _between(left, odds, s, squares, gains)
        step = np.where(late, 0.0, np.clip(odds + miss / _pace(odds, s, squares, gains), left, right) - odds)
        odds = odds + step
        if np.all(np.abs(step) <= 1e-14 * np.maximum(1.0, np.abs(odds))):
            break
    return np.sqrt(squares + gains * _progress(odds, s, squares, gains)[..., None])


def deep_critical_decay(s: Any, kappa: Any) -> np.ndarray:
    r"""Return the largest weight decay at which a mode can be held.

    .. math::
        \lambda_c = \Gamma\,\max_c c^{1-2/L}(s - c)
        = \Gamma\, s^{2-2/L}\,\frac{L}{2L-2}\Bigl(\frac{L-2}{2L-2}\Bigr)^{1-2/L}

    Parameters
    ----------
    s : array_like, shape (...)
        Singular value of the task, >= 0.
    kappa : array_like, shape (channel,)
        Shares of the channels from below, >= 0.

    Returns
    -------
    numpy.ndarray or float, shape (...)
        In units of 1 / tau.

    Raises
    ------
    ValueError
        If an argument is negative or not finite.

    Notes
    -----
    For L = 2 it is sqrt(kappa) s, where strengths vanish continuously. Deeper networks lose a mode at once, at the
    strength :math:`c = s(L-2)/(2L-2)`. See :func:`deep_rest_points`. Derived in
    :doc:`/derivations/deep_critical_decay`, checked in ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> deep_critical_decay(2.0, [0.25]), deep_critical_decay(1.0, [1.0, 1.0])
    (np.float64(1.0), np.float64(0.4724...))
    """
    s, slowdown = non_negative("s", s), deep_slowdown(real_array("kappa", kappa, ("channel",)))
    n = np.size(kappa) + 1
    best = n / (2 * n - 2) * ((n - 2) / (2 * n - 2)) ** (1 - 2 / n)
    return (s ** (2 - 2 / n) * best / slowdown)[()]


def deep_rest_points(s: float, kappa: Any, *, weight_decay: float) -> tuple[float, float]:
    r"""Return the strength below which a balanced mode is forgotten, and the one at which it ends from above that.

    Parameters
    ----------
    s : float
        Singular value of the task, > 0.
    kappa : array_like, shape (channel,)
        Shares of the channels from below, >= 0.
    weight_decay : float
        Decay of all layers and mirrors, in units of 1 / tau.

    Returns
    -------
    threshold : float
        Infinite if the decay is too strong for the mode.
    end : float
        Zero if the decay is too strong for the mode.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape or is outside its range.

    Notes
    -----
    Both solve :math:`\Gamma c^{1-2/L}(s - c) = \lambda`. For L = 2 the threshold is zero: every start learns. For
    L > 2 the origin is stable under any decay. The end depends on the hidden directions through the shares
    and these are the start's: rest points of deep networks form continua unless all hidden channels have full rank.
    For many modes only this is derived here: at rest the map has at most the smallest of all ranks
    (:func:`deep_conserved`). Derived in :doc:`/derivations/deep_critical_decay`, checked in
    ``tests/test_theory_deep.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> deep_rest_points(2.0, [0.25], weight_decay=0.1)
    (0.0, 1.8)
    >>> [round(c, 4) for c in deep_rest_points(2.0, [1.0, 1.0], weight_decay=0.1)]
    [0.0001, 1.9195]
    """
    s, decay = real("s", s, above=0.0), real("weight_decay", weight_decay, at_least=0.0)
    slowdown = deep_slowdown(real_array("kappa", kappa, ("channel",)))
    n, power = np.size(kappa) + 1, 1 - 2 / (np.size(kappa) + 1)
    if decay == 0.0:
        return 0.0, s
    if not decay < deep_critical_decay(s, kappa):
        return float("inf"), 0.0
    if n == 2:
        return 0.0, s - decay * float(slowdown)

    def excess(c: float) -> float:
        return c**power * (s - c) / slowdown - decay

    best = s * (n - 2) / (2 * n - 2)
    tiny = {"xtol": 1e-300, "rtol": 4 * np.finfo(float).eps}
    return float(brentq(excess, 0.0, best, **tiny)), float(brentq(excess, best, s, **tiny))


def _shares(kappa: Any) -> np.ndarray:
    kappa = non_negative("kappa", kappa)
    if kappa.ndim == 0 or kappa.shape[-1] == 0:
        raise ValueError(f"kappa has shape {kappa.shape}, expected (..., channel) with at least one channel")
    return kappa


def _gains(kappa: np.ndarray) -> np.ndarray:
    """Return K_l, the product of the shares between layer l and the output."""
    return np.append(np.cumprod(kappa[::-1])[::-1], 1.0)


def _mode(s: Any, layers: Any, kappa: Any) -> tuple[float, np.ndarray, np.ndarray]:
    s = real("s", s, above=0.0)
    layers = real_array("layers", layers, ("layer",))
    kappa = _shares(real_array("kappa", kappa, ("channel",)))
    if layers.size != kappa.size + 1:
        raise ValueError(f"layers has {layers.size} entries, expected one more than kappa, {kappa.size + 1}")
    if np.any(layers <= 0) or not np.prod(layers) < s:
        raise ValueError(f"layers must be > 0 with a product below s = {s}, got {layers}")
    return s, layers**2, _gains(kappa)


def _progress(odds: np.ndarray, s: float, squares: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return theta at which c has the given log odds: Newton on a concave function, from its left."""
    target = np.log(s) - np.logaddexp(0.0, -np.asarray(odds))
    theta = np.zeros(np.shape(target))
    for _ in range(200):
        now = squares + gains * theta[..., None]
        step = (target - 0.5 * np.log(now).sum(axis=-1)) / (0.5 * (gains / now).sum(axis=-1))
        theta = np.maximum(theta + step, 0.0)
        if np.all(np.abs(step) <= 1e-14 * theta):
            break
    return theta


def _pace(odds: Any, s: float, squares: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return the time per log odds."""
    now = squares + gains * _progress(odds, s, squares, gains)[..., None]
    return 1 / (s * np.sqrt(np.prod(now, axis=-1)) * np.sum(gains / now, axis=-1))


def _between(left: np.ndarray, right: np.ndarray, s: float, squares: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return the time between log odds that are at most about one apart, or late."""
    half = (right - left) / 2
    nodes = (left + half)[..., None] + half[..., None] * _NODES
    return half * np.sum(_WEIGHTS * _pace(nodes, s, squares, gains), axis=-1)


def _table(s: float, squares: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log odds from the start to where c is s up to rounding, and the times at which they are reached."""
    start = np.sqrt(np.prod(squares))
    first = np.log(start / (s - start))
    last = max(first, 0.0) + _LATE
    edges = np.linspace(first, last, int(np.ceil(last - first)) + 1)
    spent = _between(edges[:-1], edges[1:], s, squares, gains)
    return edges, np.append(0.0, np.cumsum(spent))
