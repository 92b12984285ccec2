"""The synapse-local rule for both factors of the channel."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, rate
from derivations.core import EXPAND, SIMPLIFY, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    GENERIC,
    MATHEMATICAL_SHAPES,
    SIZES_TEXT,
    W1,
    W2,
    WHITENED,
    E,
    P,
    Q,
    lam,
    r,
)

x, s = sp.symbols("x s", positive=True)


@derivation
def local_rule() -> Derivation:
    """Derive the conserved quantity and the stationary points of the synapse-local rule."""
    both = (all_sizes(), GENERIC)
    g = W1 * E.T  # hidden activity times error, averaged

    def flow(decay: sp.Expr) -> dict:
        return {
            W1: Q * P * E - decay * W1,
            W2: E * W1.T - decay * W2,
            Q: g * P.T - decay * Q,
            P: Q.T * g - decay * P,
        }

    quantity = Q.T * Q - P * P.T
    mirror = W2.T * P.T
    stationary = all_sizes((E * W1.T, lam * W2), given=r"a stationary readout, :math:`EW_1^\top = \lambda W_2`")
    c = sp.Symbol("c", positive=True)
    w1, w2, q, channel = symbols = sp.symbols("a b q_1 p_1", positive=True)
    error = s - w1 * w2
    velocity = sp.Matrix(
        [
            q * channel * error - lam * w1,
            error * w1 - lam * w2,
            w1 * error * channel - lam * q,
            q * w1 * error - lam * channel,
        ]
    )
    solved = velocity.subs({w1: c, w2: 1, q: c, channel: c})
    origin = velocity.jacobian(symbols).subs(dict.fromkeys(symbols, 0))
    gap = sp.Symbol("delta", nonnegative=True)
    roots = [(s + sign * sp.sqrt(s**2 - 4 * lam)) / 2 for sign in (1, -1)]
    return Derivation(
        name="local_rule",
        title="The synapse-local rule",
        statement=(
            r"When Q and P both learn from local products, :math:`Q^\top Q - PP^\top` is conserved "
            r"without weight decay. With it, stationarity gives :math:`PW_2W_2^\top = P`: "
            r"a learned mode has the readout strength 1 and a map strength c with :math:`c(s - c) = "
            r"\lambda`, which needs :math:`s \geq 2\sqrt\lambda`; and the origin is stable, so that "
            r"too small a start learns nothing."
        ),
        assumptions=(
            WHITENED,
            r":math:`\dot Q = GP^\top - \lambda Q`, :math:`\dot P = Q^\top G - \lambda P` with "
            r":math:`G = \langle h\delta^\top\rangle = W_1E^\top`.",
            "Equal learning rates and equal weight decay of the four matrices.",
        ),
        steps=(
            rate("The two rates cancel.", quantity, flow(sp.Integer(0)), sp.ZeroMatrix(r, r), both, key=True),
            rate("With weight decay the quantity decays.", quantity, flow(lam), -2 * lam * quantity, both),
            Step(
                r"A stationary Q is an aligned mirror: with :math:`EW_1^\top = \lambda W_2` its "
                r"equation holds for :math:`Q = W_2^\top P^\top`.",
                g * P.T,
                lam * mirror,
                (stationary,),
                shown="G P^T",
            ),
            Step(
                r"A stationary P then obeys :math:`\lambda P = Q^\top G = \lambda PW_2W_2^\top`.",
                mirror.T * g,
                lam * P * W2 * W2.T,
                (stationary,),
                key=True,
                shown="Q^T G",
            ),
            Step(
                r"One mode with weights a, b, q, p: at b = 1 and a = q = p = c all four rates vanish "
                r"when :math:`\lambda = c(s - c)`.",
                solved.subs(lam, c * (s - c)),
                sp.zeros(4, 1),
                (EXPAND,),
                key=True,
                shown=r"(\dot a, \dot b, \dot q, \dot p)^T",
            ),
            Step(
                r"The two solutions are :math:`c = (s \pm \sqrt{s^2 - 4\lambda})/2`, real only if the discriminant is "
                "not negative.",
                sp.ImmutableMatrix([root * (s - root) for root in roots]),
                sp.ImmutableMatrix([lam, lam]),
                (SIMPLIFY,),
                shown=r"(c_+ (s - c_+), c_- (s - c_-))^T",
            ),
            Step(
                r"At :math:`s = 2\sqrt\lambda + \delta` the discriminant is not negative.",
                sp.expand((2 * sp.sqrt(lam) + gap) ** 2 - 4 * lam),
                gap * (4 * sp.sqrt(lam) + gap),
                (EXPAND,),
                shown=r"s^2 - 4\lambda",
            ),
            Step(
                "At the origin only the readout has a linear drive, from the hidden layer, which has "
                "none itself: the linearised flow is triangular and all four rates are minus the decay.",
                (x * sp.eye(4) - origin).det(method="berkowitz"),
                (x + lam) ** 4,
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_0)",
            ),
        ),
        sizes=SIZES_TEXT + " " + MATHEMATICAL_SHAPES,
        test="tests/test_derivations.py::test_every_derivation_verifies",
        citations=("hanut2025",),
    )
