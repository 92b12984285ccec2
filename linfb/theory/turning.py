"""When a reader that follows the errors turns, and when error stays hidden from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from linfb._checks import choice, integer, real, real_array
from linfb.theory.modes import non_negative


def critical_reader_rate_at(E: Any, P: Any, W2: Any, Q: Any) -> float:
    r"""Return the rate above which an error-driven reader leaves a state in which it sees no error.

    .. math:: \rho_c = \frac{\min\,\mathrm{Re}\,\mathrm{eig}(P W_2 Q^\top)}{\|E\|_2^2}

    Parameters
    ----------
    E : array_like, shape (out, in)
        Error correlation A - W2 W1 that is left.
    P : array_like, shape (rank, out)
        The reader, which sees nothing of it: P E = 0.
    W2 : array_like, shape (out, hidden)
        Readout.
    Q : array_like, shape (rank, hidden)
        Mirror.

    Returns
    -------
    float
        Rate relative to that of the weights; negative where the state is unstable even under a reader at rest, infinite
        without error.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, or P sees some of E (to 1e-6 of its size).

    Notes
    -----
    To first order in the visible error v = PE, at a point with PE = 0, E W1^T = 0 and no weight decay,

    .. math:: \dot v = \rho\, v E^\top E - (P W_2 Q^\top)\, v - v W_1^\top W_1 ,

    whatever the mirror does. Derived in :doc:`/derivations/turning_condition`; checked in
    ``tests/test_theory_turning.py`` against Jacobians of the whole flow at random states and by runs on both sides.

    References
    ----------
    :cite:p:`hanut2025,oja1989`

    Examples
    --------
    >>> import numpy as np
    >>> E, P = np.diag([0.0, 2.0]), np.array([[1.0, 0.0]])
    >>> critical_reader_rate_at(E, P, W2=[[1.5], [0.0]], Q=[[2.0]])
    0.75
    """
    E = real_array("E", E, ("out", "in"))
    P = real_array("P", P, ("rank", E.shape[0]))
    W2 = real_array("W2", W2, (E.shape[0], "hidden"))
    Q = real_array("Q", Q, (P.shape[0], W2.shape[1]))
    size = np.linalg.norm(E, 2)
    seen = np.linalg.norm(P @ E, 2)
    if seen > 1e-6 * np.linalg.norm(P, 2) * size:
        raise ValueError(f"P must not see the error, but P @ E has the norm {seen:.3g} (E: {size:.3g})")
    weakest = np.linalg.eigvals(P @ W2 @ Q.T).real.min()
    return float(weakest / size**2) if size > 0 else np.inf


def critical_reader_rate(s: Any, rank: int, *, weight_decay: float = 0.0, noise: Any = None) -> float:
    r"""Return the rate above which an error-driven reader turns from the modes it has learned to the next.

    Without decay and noise

    .. math:: \rho_c = \frac{s_r}{s_{r+1}^2} ;

    with weight decay :math:`\lambda` and label noise of the variances :math:`\sigma_i^2` along the modes, for a learned
    mode :math:`a = s_i` and a hidden one :math:`b = s_j` with :math:`\Delta = \sigma_j^2 - \sigma_i^2`, the smallest
    :math:`\rho > 0` with

    .. math::
        (2a - \rho\alpha)(a^2 - \rho\beta) = \rho\kappa, \qquad
        \alpha = b^2 - \lambda^2 + \Delta, \quad \beta = 2a\alpha - (a - \lambda) b^2, \quad
        \kappa = \lambda^2 (a^2 - b^2) - a^2 \Delta ,

    and zero if :math:`\kappa < 0`; of all pairs the smallest.

    Parameters
    ----------
    s : array_like, shape (mode,)
        Strengths of the task's modes, > 0 for those that are learned. The first `rank` are learned, the others hidden;
        a zero is an output direction without a task.
    rank : int
        Number r of directions that the channel reads, >= 1.
    weight_decay : float
        Decay :math:`\lambda` of W1, W2 and Q, in units of 1 / tau; smaller than every learned strength.
    noise : array_like, shape (mode,), optional
        Variance of the label noise along every mode's output direction, per sample; None is no noise, or the same noise
        everywhere.

    Returns
    -------
    float
        Rate relative to that of the weights: the hidden state is stable below. Infinite if it always is.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range or a shape does not fit.

    Notes
    -----
    The reader obeys Oja's rule with C = <delta delta^T> per sample, has orthonormal rows and no decay; the state is
    that of balanced weights on the first modes, :math:`c_i = s_i - \lambda`, with an aligned mirror, perfect or
    Kolen-Pollack. Exact for the linear stability of that state. Without decay and noise there is a line of such states,
    hence eigenvalues zero, about which the linear part says nothing. With decay the bifurcation is a Hopf bifurcation,
    :math:`\rho_c = (s_r - \lambda)/s_{r+1}^2 + O(\lambda^2)`.
    Derived in :doc:`/derivations/turning_condition` and :doc:`/derivations/turning_with_decay`; checked in
    ``tests/test_theory_turning.py`` against the Jacobian of the whole flow and by runs on both sides.

    References
    ----------
    :cite:p:`hanut2025,oja1989,leen1990`

    Examples
    --------
    >>> critical_reader_rate([3.0, 2.0, 1.0], rank=1), critical_reader_rate([3.0, 2.0, 1.0], rank=2)
    (0.75, 2.0)
    >>> round(critical_reader_rate([3.0, 2.0, 1.0], rank=1, weight_decay=0.05), 4)
    0.7384
    >>> critical_reader_rate([3.0, 2.0, 1.0], rank=1, noise=[0.0, 0.1, 0.0])
    0.0
    """
    a, b, delta, decay = _pairs(s, rank, weight_decay, noise)
    if b.size == 0:
        return np.inf
    pull, slope, kept = _coefficients(a, b, delta, decay)
    linear = 2 * a * slope + a**2 * pull + kept
    discriminant = np.maximum(linear**2 - 8 * a**3 * pull * slope, 0.0)  # real roots wherever one is positive
    inverse = np.where((linear > 0) | (pull * slope < 0), linear + np.sqrt(discriminant), 0.0) / (4 * a**3)
    with np.errstate(divide="ignore"):
        critical = np.where(inverse > 0, 1 / inverse, np.inf)
    return float(np.where(kept < 0, 0.0, critical).min())


def turning_exponent(s: Any, rank: int, rate: float, *, weight_decay: float = 0.0, noise: Any = None) -> complex:
    r"""Return the leading eigenvalue with which a reader tilts away from the modes it has learned.

    Of all pairs of a learned and a hidden mode the root with the largest real part of

    .. math:: x^3 + (2a - \rho\alpha)\, x^2 + (a^2 - \rho\beta)\, x + \rho\kappa

    with the coefficients of :func:`critical_reader_rate`.

    Parameters
    ----------
    s, rank, weight_decay, noise
        As in :func:`critical_reader_rate`.
    rate : float
        The reader's rate :math:`\rho` relative to that of the weights, >= 0.

    Returns
    -------
    complex
        Growth rate, and frequency (>= 0) in radians, per unit of tau. Minus infinity if nothing is hidden.

    Raises
    ------
    TypeError, ValueError
        As in :func:`critical_reader_rate`.

    Notes
    -----
    At the critical rate with weak decay the frequency is :math:`\lambda\sqrt{s_r^2 - s_{r+1}^2} / s_{r+1}`. Without
    decay and noise one eigenvalue of every pair is zero and left out: its direction leads along the line of hidden
    states.
    Derived in :doc:`/derivations/turning_with_decay`; checked in ``tests/test_theory_turning.py``.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> turning_exponent([3.0, 2.0, 1.0], rank=1, rate=0.7)
    (-0.2000...+0j)
    """
    a, b, delta, decay = _pairs(s, rank, weight_decay, noise)
    rate = real("rate", rate, at_least=0.0)
    pull, slope, kept = _coefficients(a, b, delta, decay)
    leading = complex(-np.inf)
    for c2, c1, c0 in zip(2 * a - rate * pull, a**2 - rate * slope, rate * kept, strict=True):
        roots = np.roots([1.0, c2, c1, c0] if c0 != 0 else [1.0, c2, c1])
        root = roots[np.argmax(roots.real)]
        if root.real > leading.real:
            leading = complex(root.real, abs(root.imag))
    return leading


def critical_tilt(s: Any, rank: int, rate: float, *, mirror: str = "perfect") -> float:
    r"""Return by how much a reader must be tilted to leave the modes that it has learned below the critical rate.

    .. math::
        \theta_c = \frac23\,\frac{s_r}{\sqrt{c\,(s_r^2 - s_{r+1}^2)}}\,\Big(1 - \frac{\rho}{\rho_c}\Big)^{3/2},
        \qquad \rho_c = \frac{s_r}{s_{r+1}^2} ,

    with c = 2 for mirrors that follow the readout and c = 3/2 for Kolen-Pollack's. A smaller tilt towards mode r + 1 is
    hidden again.

    Parameters
    ----------
    s : array_like, shape (mode,)
        Strengths of the task's modes, in falling order, > 0 up to mode `rank`; the modes r and r + 1 differ.
    rank : int
        Number r of directions that the channel reads, >= 1.
    rate : float
        The reader's rate :math:`\rho` relative to that of the weights, >= 0.
    mirror : {"perfect", "kolen_pollack"}
        "perfect" stands for any mirror that follows the readout, at whatever rate.

    Returns
    -------
    float
        Angle in radians; zero from the critical rate on, infinite without a hidden mode.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, the strengths rise, or modes r and r + 1 are equally strong.

    Notes
    -----
    Without weight decay, from balanced weights with the first r modes learned and an aligned mirror. To leading order:
    the relative error is of order :math:`1 - \rho/\rho_c` (measured; 1 to 4 % at a distance of 0.1). From
    small random starts of scale :math:`\epsilon` the tilt at which the first modes are reached is itself of order
    :math:`\epsilon` up to logarithms, so that networks escape below the critical rate, by a relative distance of about
    :math:`\epsilon^{2/3}`.
    Derived in :doc:`/derivations/basin_of_hiding`; checked in ``tests/test_theory_turning.py`` against runs.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> round(critical_tilt([3.0, 2.0, 1.0], 1, rate=0.7), 4)
    0.0109
    """
    s = falling("s", s, rank)
    rank, rate = integer("rank", rank, at_least=1), real("rate", rate, at_least=0.0)
    share = {"perfect": 2.0, "kolen_pollack": 1.5}[choice("mirror", mirror, ("perfect", "kolen_pollack"))]
    if s.size <= rank or s[rank] == 0:
        return np.inf
    a, b = s[rank - 1], s[rank]
    if a == b:
        raise ValueError(f"s must differ between the modes {rank} and {rank + 1}, got {s}")
    distance = max(0.0, 1 - rate * b**2 / a)
    return float(2 / 3 * a / np.sqrt(share * (a**2 - b**2)) * distance**1.5)


def falling(name: str, s: Any, rank: int) -> np.ndarray:
    """Return the strengths of modes of which the first `rank` are learned, or say what is wrong with them."""
    s = non_negative(name, real_array(name, s, ("mode",)))
    if np.any(s[: integer("rank", rank, at_least=1)] == 0) or np.any(np.diff(s) > 0):
        raise ValueError(f"{name} must fall and be > 0 where it is learned, got {s}")
    return s


def _pairs(s: Any, rank: int, decay: float, noise: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return the strengths of all pairs of a learned and a hidden mode, their difference in noise, and the decay."""
    s = non_negative("s", real_array("s", s, ("mode",)))
    rank, decay = min(integer("rank", rank, at_least=1), s.size), real("weight_decay", decay, at_least=0.0)
    sigma = np.zeros_like(s) if noise is None else non_negative("noise", real_array("noise", noise, s.shape))
    if np.any(s[:rank] <= decay):
        raise ValueError(f"s must exceed the weight decay {decay:g} where it is learned, got {s[:rank]}")
    a, b = (part.ravel() for part in np.meshgrid(s[:rank], s[rank:], indexing="ij"))
    return a, b, (sigma[None, rank:] - sigma[:rank, None]).ravel(), decay


def _coefficients(a: Any, b: Any, delta: Any, decay: float) -> tuple[Any, Any, Any]:
    """Return alpha, beta and kappa of the stability polynomial."""
    pull = b**2 - decay**2 + delta
    return pull, 2 * a * pull - (a - decay) * b**2, decay**2 * (a**2 - b**2) - a**2 * delta


def modes_learned_by_errors(s: Any, rank: int, rate: float) -> int:
    r"""Return how many modes an error-driven reader with a perfect mirror learns, one group after the other.

    The smallest :math:`j \ge r` with

    .. math:: \rho\, s_{j+1}^2 < s_j ,

    or all of them.

    Parameters
    ----------
    s : array_like, shape (mode,)
        Strengths of the task's modes, > 0, in falling order.
    rank : int
        Number r of directions that the channel reads, >= 1.
    rate : float
        The reader's rate :math:`\rho` relative to that of the weights, >= 0.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, or the strengths rise.

    Notes
    -----
    The condition of :func:`critical_reader_rate` after every mode: with small starts the reader has come to rest on the
    weakest of the modes that are learned when it meets it. What the mirror is matters: a mirror that lags leaves other
    weights behind, and under Kolen-Pollack the reader can be captured once it has turned. Not derived: beyond the
    condition for a single turn it is not proved. Checked in ``tests/test_theory_turning.py`` by runs from small starts.

    References
    ----------
    :cite:p:`hanut2025`

    Examples
    --------
    >>> [modes_learned_by_errors([3.0, 2.0, 1.0], rank=1, rate=rate) for rate in (0.7, 0.8, 2.1)]
    [1, 2, 3]
    """
    s = non_negative("s", real_array("s", s, ("mode",)))
    rank, rate = integer("rank", rank, at_least=1), real("rate", rate, at_least=0.0)
    if np.any(s == 0) or np.any(np.diff(s) > 0):
        raise ValueError(f"s must be > 0 and fall, got {s}")
    stuck = np.flatnonzero(rate * s[rank:] ** 2 < s[rank - 1 : -1])
    return int(rank + stuck[0]) if stuck.size else s.size


def visible_error_flow(
    errors: Any, P: Any, W2: Any, Q: Any, inputs: Any, hidden: Any, slopes: Any, rate: float
) -> np.ndarray:
    r"""Return the matrix by which errors on samples become visible, or not, where a reader of errors sees none.

    One hidden layer of any activation function, squared error, no weight decay. With errors :math:`\delta_\mu` that are
    all hidden, hidden activities :math:`h_\mu` of slopes :math:`D_\mu = \operatorname{diag}(\phi'_\mu)`, and averages
    over the samples :math:`\nu`, the visible errors :math:`v_\mu = P\delta_\mu` of an Oja reader obey to first order

    .. math::
        \dot v_\mu = \big\langle \rho\,(\delta_\mu^\top\delta_\nu)\, v_\nu
        - (x_\mu^\top x_\nu)\, P W_2 D_\mu D_\nu Q^\top v_\nu - (h_\mu^\top h_\nu)\, v_\nu \big\rangle_\nu .

    Parameters
    ----------
    errors : array_like, shape (sample, out)
        Labels minus outputs, of which P sees nothing.
    P : array_like, shape (rank, out)
        The reader, with orthonormal rows.
    W2 : array_like, shape (out, hidden)
        Readout.
    Q : array_like, shape (rank, hidden)
        Mirror.
    inputs : array_like, shape (sample, in)
        What W1 acts on; with biases, a constant is one of them.
    hidden, slopes : array_like, shape (sample, hidden)
        Activities of the hidden units and their derivatives.
    rate : float
        The reader's rate :math:`\rho` relative to that of the weights, >= 0.

    Returns
    -------
    numpy.ndarray, shape (sample * rank, sample * rank)
        In units of 1 / tau; it acts on the visible errors, shape (sample, rank), as one vector. The state is left if an
        eigenvalue has a positive real part, and P turns along the average of the errors with its eigenvector.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, an entry is not finite, or P sees some of the errors (to 1e-6 of their size).

    Notes
    -----
    The first term is the pull of the errors on P, the others are how fast weights hide what P uncovers: the tangent
    kernel of the network behind the channel. Its eigenvalues say which part of an error can be hidden in time, and
    which not at all. In a linear network with whitened inputs and errors without noise, those that matter are the ones
    of P W2 Q^T, which is the condition of :func:`critical_reader_rate_at`.
    Derived in :doc:`/derivations/visible_errors`; checked in ``tests/test_theory_turning.py`` against Jacobians of the
    whole flow of networks of tanh units.

    References
    ----------
    :cite:p:`hanut2025,oja1989`

    Examples
    --------
    >>> import numpy as np
    >>> x, E, P = np.sqrt(2) * np.eye(2), np.diag([0.0, 2.0]), np.array([[1.0, 0.0]])
    >>> W1, W2, Q = np.array([[1.0, 0.0]]), np.array([[1.5], [0.0]]), np.array([[2.0]])
    >>> flow = visible_error_flow(x @ E.T, P, W2, Q, x, x @ W1.T, np.ones((2, 1)), rate=0.7)  # 0.75 is critical
    >>> np.linalg.eigvals(flow).round(6)
    array([-4. , -0.2])
    """
    errors = real_array("errors", errors, ("sample", "out"))
    n, rank = len(errors), len(P := real_array("P", P, ("rank", errors.shape[1])))
    W2 = real_array("W2", W2, (errors.shape[1], "hidden"))
    Q = real_array("Q", Q, (rank, W2.shape[1]))
    x, h = real_array("inputs", inputs, (n, "in")), real_array("hidden", hidden, (n, W2.shape[1]))
    slopes, rate = real_array("slopes", slopes, h.shape), real("rate", rate, at_least=0.0)
    seen, size = np.linalg.norm(errors @ P.T), np.linalg.norm(errors)
    if seen > 1e-6 * np.linalg.norm(P, 2) * size:
        raise ValueError(f"P must not see the errors, but errors @ P.T has the norm {seen:.3g} (errors: {size:.3g})")
    shared = np.kron(rate * errors @ errors.T - h @ h.T, np.eye(rank))
    ways = np.einsum("ai,mi,ni,bi,mn->manb", P @ W2, slopes, slopes, Q, x @ x.T, optimize=True)
    return (shared - ways.reshape(shared.shape)) / n
