"""One mode under feedback alignment with a fixed random weight, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import exprel

from linfb._checks import real
from linfb.theory.modes import non_negative

FAR = 30.0  # starts beyond this multiple of the largest root use the series in 1 / a
SETTLED = 300.0  # exp(-SETTLED) of the way to the end point is the end point
TINY = 1e-100  # numbers below this are taken for zero
NEGLIGIBLE = 1e-130  # a start this close to its end is there, a time this short has not passed


def feedback_alignment_mode(t: Any, s: float, a0: float, c0: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the two weights a(t), c(t) of a single mode trained with a fixed feedback weight b.

    .. math::
        \dot a = b\,(s - ac), \qquad \dot c = (s - ac)\,a, \qquad c - \frac{a^2}{2b} = \text{const}, \qquad
        t = -2\sum_i \frac{\ln\bigl[(a - a_i)/(a_0 - a_i)\bigr]}{\prod_{j\ne i}(a_i - a_j)},

    where a_i are the roots of :math:`a^3 + (2bc_0 - a_0^2)\,a - 2bs`.

    Parameters
    ----------
    t : array_like
        Times >= 0, in units of tau = 1 / learning rate.
    s : float
        Singular value of the task (any sign).
    a0, c0 : float
        First-layer and readout strength at t = 0.
    b : float
        Feedback weight in the place of c; zero trains the readout only.

    Returns
    -------
    a, c : numpy.ndarray or float
        Strengths with the shape of `t`; the mode's strength is a * c.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a finite real number or a time is negative.

    Notes
    -----
    Assumes one hidden unit (or hidden units that all follow one vector), whitened inputs, no weight decay. The
    time is elementary in a; it is inverted by a bracketed Newton iteration to rounding, in the logarithm of the
    distance to the root that a approaches, so that the end point is reached without loss of digits. Feedback and
    readout of opposite signs first unlearn: c passes through zero, which takes long if a starts near an unstable root.
    Arguments, and an error s - a0 c0, below 1e-100 count as zero. Near a triple root the sum over roots cancels;
    there the expansion of the integrand in 1 / a takes its place.
    Derived in :doc:`/derivations/feedback_alignment_mode`, checked against the two equations in
    ``tests/test_theory_feedback_alignment.py``.

    References
    ----------
    :cite:p:`lillicrap2016,refinetti2021`

    Examples
    --------
    >>> a, c = feedback_alignment_mode([0.0, 1.0, 100.0], 1.0, 0.0, 0.0, 0.5)
    >>> a * c
    array([0.        , 0.11420078, 1.        ])
    >>> c - a**2
    array([0., 0., 0.])
    """
    t = non_negative("t", t)
    s, a0, c0, b = (real(name, value) for name, value in (("s", s), ("a0", a0), ("c0", c0), ("b", b)))
    s, a0, c0, b, error = (0.0 if abs(x) < TINY else x for x in (s, a0, c0, b, s - a0 * c0))
    if b == 0.0:  # a stays: linear regression of the readout
        change = error * t * exprel(-a0 * a0 * t)
    elif error == 0.0:
        change = np.zeros(t.shape)
    else:
        change = _change(t, error, a0, c0, b)
    return (a0 + b * change)[()], (c0 + change * (a0 + b * change / 2))[()]


def _change(t: np.ndarray, error: float, a0: float, c0: float, b: float) -> np.ndarray:
    """Return z(t) = (a(t) - a0) / b = integral of s - a c, which stays regular as b goes to zero."""
    path = _Path.from_start(a0, c0, b, error)
    if abs(path.u0) < NEGLIGIBLE:
        return np.zeros(t.shape)
    return path.u0 / b * np.expm1(-_invert(path.time, path.rate, t))


def _root_between(value: Callable[[float], float], marks: list[float]) -> float:
    """Return the first root of a function that is positive at the first mark and monotone between marks."""
    from scipy.optimize import brentq

    for low, high in pairwise(marks):
        if value(high) <= 0:
            return brentq(value, low, high, xtol=1e-300, rtol=4 * np.finfo(float).eps, maxiter=2000)
    raise ArithmeticError(f"no root among {marks}")


def _first_change(error: float, a0: float, c0: float, b: float) -> float:
    """Return the z at which s - a c, a cubic in z that equals `error` at zero, first vanishes."""
    sign = np.sign(error)
    p0, p1, p2, p3 = abs(error), -(a0 * a0 + b * c0), -1.5 * a0 * b * sign, -0.5 * b * b  # in sign * z > 0
    bound = 2 * max(abs(p2 / p3), np.sqrt(abs(p1 / p3)), np.cbrt(abs(p0 / p3)))
    middle, product = -p2 / (3 * p3), p1 / (3 * p3)
    spread = np.sqrt(max(middle * middle - product, 0.0))
    turns = [z for z in (middle - spread, middle + spread) if 0 < z < bound]
    return sign * _root_between(lambda z: ((p3 * z + p2) * z + p1) * z + p0, [0.0, *turns, bound])


def _outermost(p: float, q: float, side: float) -> float:
    """Return the real root of a^3 + p a + q that lies furthest out on one side."""
    bound = 2 * max(np.sqrt(abs(p)), np.cbrt(abs(q)))
    turn = np.sqrt(max(-p / 3, 0.0))
    marks = [bound, turn, -turn, -bound] if turn > 0 else [bound, -bound]
    return side * _root_between(lambda y: (y * y + p) * y + side * q, marks) if bound > 0 else 0.0


@dataclass(frozen=True)
class _Path:
    """The way of u = a - a_end from u0 to 0, with da/dt = -u (u^2 + linear u + constant) / 2.

    `start` is the value of that quadratic at u0, known without cancellation; `size` is the largest root in a.
    """

    a_end: float
    u0: float
    linear: float
    constant: float
    start: float
    size: float

    @classmethod
    def from_start(cls, a0: float, c0: float, b: float, error: float) -> _Path:
        p, q = 2 * b * c0 - a0 * a0, -2 * b * (error + a0 * c0)
        if abs(a0) > FAR * max(np.sqrt(abs(p)), np.cbrt(abs(q))):  # the roots are close to each other
            a_end = _outermost(p, q, np.sign(a0))
            u0 = a0 - a_end
        else:
            u0 = -b * _first_change(error, a0, c0, b)
            a_end = a0 - u0
        linear, constant = 3 * a_end, 3 * a_end * a_end + p
        others = np.roots([1.0, linear, constant])
        passed = [e.real for e in others if e.imag == 0 and e.real * np.sign(u0) > 0 and abs(e) < abs(u0)]
        nearest = max(passed, key=abs, default=0.0)
        if (
            len(passed) == 2 or 0 < abs(nearest) < abs(u0) / 2
        ):  # rounding passed over one of two roots that nearly agree
            a_end, u0 = a_end + nearest, u0 - nearest
            others = np.array([-nearest, *(e - nearest for e in others if e != nearest)])
            linear, constant = -float(np.sum(others).real), float(np.prod(others).real)
        size = max(abs(a_end), *np.abs(others + a_end))
        return cls(a_end, u0, linear, constant, -2 * b * error / u0, size)

    def rate(self, w: np.ndarray) -> np.ndarray:
        """Return dw/dt of w = ln(u0 / u)."""
        u, change = self.u0 * np.exp(-w), self.u0 * np.expm1(-w)
        return np.maximum(self.start + change * (u + self.u0 + self.linear), 0.0) / 2

    def time(self, w: np.ndarray) -> np.ndarray:
        """Return the time at which ln(u0 / u) = w."""
        u, change = self.u0 * np.exp(-w), self.u0 * np.expm1(-w)
        a0 = self.a_end + self.u0
        edge = np.sign(a0) * FAR * self.size
        if abs(a0) <= abs(edge):
            return self._rational(self.u0, self.start, u, change)
        far = np.abs(self.a_end + u) >= abs(edge)
        first = self._series(a0, np.where(far, change, edge - a0))
        if edge == 0.0:
            return first
        turn = edge - self.a_end
        near = np.where(far, turn, u)
        start = (turn + self.linear) * turn + self.constant
        return first + self._rational(turn, start, near, near - turn)

    def _series(self, a0: float, change: np.ndarray) -> np.ndarray:
        """Integrate -2 / (a^3 + p a + q) from a0 to a0 + change as a power series in 1 / a."""
        p = self.constant - 3 * self.a_end**2
        q = -self.a_end * (self.a_end**2 + p)
        terms = [1.0, 0.0, -p]
        for _ in range(16):
            terms.append(-p * terms[-2] - q * terms[-3])
        logs = np.log1p(np.maximum(change / a0, np.finfo(float).eps - 1.0))
        parts = [2 * term / n * a0**-n * np.expm1(-n * logs) for n, term in enumerate(terms, start=2) if term != 0.0]
        return np.sum(parts, axis=0)

    def _rational(self, u0: float, start: float, u: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Integrate -2 / (u (u^2 + linear u + constant)) from u0 to u = u0 + change by its roots."""
        discriminant = self.linear**2 - 4 * self.constant
        if discriminant < 0:
            root = np.sqrt(-discriminant)
            angle = np.arctan2(
                root * change, 2 * u * u0 + self.linear * (u + u0) + 2 * self.constant
            )  # of the complex pair
            growth = 0.5 * np.log1p(change * (u + u0 + self.linear) / start)
            return 2 / self.constant * (-np.log(u / u0) + growth + self.linear * angle / root)
        outer = -(self.linear + np.copysign(np.sqrt(discriminant), self.linear)) / 2
        inner = self.constant / outer if outer else 0.0
        far, near = sorted((outer, inner), key=lambda e: -abs(u0 - e))
        offset = {0.0: u0, near: start / (u0 - far), far: u0 - far}  # of u0 from each root, without cancellation
        low, middle, high = sorted((0.0, outer, inner))

        def difference(x: float, y: float) -> np.ndarray:
            """First divided difference of ln((u - x) / (u0 - x)) with respect to x, at x and y."""
            beside = y != 0 and abs(offset[y]) < abs(y)
            ratio = change / ((offset[y] + change if beside else u - y) * offset[x])
            return ratio * _log1p_ratio((x - y) * ratio)

        def pair(x: float, y: float) -> np.ndarray:
            """Order the two so that the logarithm is not taken of a small number."""
            signs = np.sign([y - x, u0, offset[x], offset[y]])
            return difference(x, y) if np.prod(signs) >= 0 else difference(y, x)

        return -2 * (pair(low, middle) - pair(middle, high)) / (low - high)


def _log1p_ratio(x: np.ndarray) -> np.ndarray:
    return np.divide(np.log1p(x), x, out=np.ones_like(x), where=x != 0)


def _invert(time: Callable, rate: Callable, t: np.ndarray) -> np.ndarray:
    """Return w with time(w) = t for an increasing function with time(0) = 0, by bracketed Newton steps."""
    low, high = np.zeros(t.shape), np.full(t.shape, SETTLED)
    w, before = np.minimum(rate(low) * t, SETTLED / 2), np.full(t.shape, np.inf)
    done = np.zeros(t.shape, dtype=bool)
    for _ in range(500):
        excess = time(w) - t
        low, high = np.where(excess <= 0, w, low), np.where(excess >= 0, w, high)
        newton = w - excess * rate(w)
        settled = (np.abs(newton - w) <= 4 * np.finfo(float).eps * w) & (np.abs(excess) <= 1e-6 * t)
        narrow = (high - low <= 4 * np.finfo(float).eps * high) | (np.abs(excess) < NEGLIGIBLE)
        useful = (newton > low) & (newton < high) & (np.abs(excess) <= before / 2)
        w = np.where(done | settled | narrow, w, np.where(useful, newton, _between(low, high)))
        done, before = done | settled | narrow, np.abs(excess)
        if np.all(done):
            return w
    raise ArithmeticError(f"the time could not be inverted at t = {t[~done]}")


def _between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Halve a bracket: in the logarithm while it spans orders of magnitude."""
    return np.where(high > 4 * low, np.sqrt(np.maximum(low, 1e-300)) * np.sqrt(high), (low + high) / 2)
