"""When a reader that follows the errors turns."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, at_sizes, rate
from derivations.core import EXPAND, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    MATHEMATICAL_SHAPES,
    SIZES,
    W1,
    W2,
    WHITENED,
    E,
    P,
    Q,
    k,
    m,
    n,
    r,
)

x, s = sp.symbols("x s", positive=True)


def reader_flow(rho: sp.Expr) -> dict:
    """Return the flow with an Oja reader on errors, C = E E^T, and the mirror Q as it stands, without weight decay."""
    return {
        W1: Q * P * E,
        W2: E * W1.T,
        P: rho * P * E * E.T * (sp.Identity(m) - P.T * P),
        E: -(E * W1.T) * W1 - W2 * (Q * P * E),
    }


def _hidden_state(rho: sp.Expr) -> tuple[sp.Matrix, sp.Matrix]:
    """Return velocity and Jacobian of the whole flow where mode 1 is learned and mode 2 hidden.

    Sizes n = m = 2 and k = r = 1; Kolen-Pollack mirror.
    """
    s1, s2 = sp.symbols("s_1 s_2", positive=True)
    a, b, p = (sp.Matrix(1, 2, sp.symbols(f"{c}_1:3")) for c in "abp")
    q = sp.Symbol("q")
    error = sp.diag(s1, s2) - b.T * a
    covariance = error * error.T
    velocity = sp.Matrix(
        [
            *(q * p * error),
            *(error * a.T),
            *(rho * p * covariance * (sp.eye(2) - p.T * p)),
            (a * error.T * p.T)[0, 0],
        ]
    )
    strength = sp.sqrt(s1)
    variables = [*a, *b, *p, q]
    point = dict(zip(variables, [strength, 0, strength, 0, 1, 0, strength], strict=True))
    return velocity.subs(point), velocity.jacobian(variables).subs(point)


@derivation
def turning_condition() -> Derivation:
    """Derive when an error-driven reader leaves a state in which it sees no error: condition (4)."""
    rho, mu, e2 = sp.symbols("rho mu e", positive=True)
    s1, s2 = sp.symbols("s_1 s_2", positive=True)
    flow = reader_flow(rho)
    visible = P * E
    exact = rho * visible * E.T * E - (P * W2 * Q) * visible - visible * W1.T * W1 - rho * visible * visible.T * visible
    still, jacobian = _hidden_state(rho)
    u, y = sp.MatrixSymbol("u", r, 1), sp.MatrixSymbol("y", n, 1)
    direction = u * y.T
    eigen = all_sizes(
        (E.T * E * y, e2**2 * y),
        (W1 * y, sp.ZeroMatrix(k, 1)),
        (P * W2 * Q * u, mu * u),
        given=r":math:`E^\top E\, y = e^2 y`, :math:`W_1 y = 0` and :math:`(PW_2Q) u = \mu u`",
    )
    off = all_sizes(
        (E * y, sp.ZeroMatrix(m, 1)),
        (W1.T * W1 * y, e2**2 * y),
        (P * W2 * Q * u, mu * u),
        given=r":math:`E y = 0`, :math:`W_1^\top W_1\, y = w^2 y` (written e) and :math:`(PW_2Q) u = \mu u`",
    )
    characteristic = (x * sp.eye(7) - jacobian).det(method="berkowitz")
    small = at_sizes({**SIZES, n: 2})
    return Derivation(
        name="turning_condition",
        title="When an error-driven reader turns",
        statement=(
            r"The visible error :math:`v = PE` of a reader that follows the errors (Oja with "
            r":math:`C = EE^\top`) obeys an equation that is exact and closed but for slow "
            r"coefficients. At a point with "
            r":math:`PE = 0` and :math:`EW_1^\top = 0` its linear part grows if and only if "
            r":math:`\rho\lVert E\rVert_2^2 > \min \mathrm{Re}\,\mathrm{eig}(PW_2Q)`. "
            r"On the top r modes with balanced weights and an aligned mirror this reads :math:`\rho "
            r"> s_r / s_{r+1}^2`."
        ),
        assumptions=(
            WHITENED,
            r":math:`\lambda = 0`; W1 and W2 at rate 1, P at rate :math:`\rho`; any mirror Q (its "
            r"own motion enters at second order).",
            "First order in the visible error; at eigenvalue zero the linear part decides nothing.",
        ),
        steps=(
            rate(
                "The equation of the visible error, without approximation.",
                visible,
                flow,
                exact,
                (all_sizes(), small),
                key=True,
            ),
            Step(
                r"Its linear part, with E, W and PW2Q at the point: a direction :math:`v = uy^\top` "
                r"with y among the inputs of the hidden error grows at the rate :math:`\rho e^2 - \mu`.",
                rho * direction * E.T * E - (P * W2 * Q) * direction - direction * W1.T * W1,
                (rho * e2**2 - mu) * direction,
                (eigen,),
                key=True,
                shown=r"\rho v E^T E - (P W_2 Q) v - v W_1^T W_1",
            ),
            Step(
                r"A direction with y among the inputs that are in use has the rate :math:`-w^2 - \mu`: "
                r"it does not help (:math:`EW_1^\top = 0` keeps the two apart).",
                rho * direction * E.T * E - (P * W2 * Q) * direction - direction * W1.T * W1,
                (-(e2**2) - mu) * direction,
                (off,),
                shown=r"\rho v E^T E - (P W_2 Q) v - v W_1^T W_1",
            ),
            Step(
                "Two modes, one hidden unit, one channel on the stronger mode, balanced weights, "
                "Kolen-Pollack mirror: the flow stands still although mode 2 is not learned.",
                still,
                sp.zeros(7, 1),
                (EXPAND,),
                shown=r"(\dot W_1, \dot W_2, \dot P, \dot Q)^T",
            ),
            Step(
                r"The Jacobian of the whole flow in its seven variables has the predicted rate "
                r":math:`\rho s_2^2 - s_1`, and no other can be positive.",
                characteristic,
                x**4 * (x + s1) * (x + 2 * s1) * (x - (rho * s2**2 - s1)),
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J)",
            ),
        ),
        sizes="The equation of the visible error for all sizes, and at the explicit size named in "
        "the step. The full Jacobian at n = m = 2, k = r = 1. " + MATHEMATICAL_SHAPES,
        test="tests/test_derivations.py::test_turning_rate_numerically",
        citations=("hanut2025", "oja1982", "kolenpollack1994"),
    )
