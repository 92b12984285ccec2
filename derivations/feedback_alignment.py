"""Feedback alignment of one mode, in two layers and in three."""

from __future__ import annotations

import sympy as sp

from derivations.core import EXPAND, RATIONAL, SIMPLIFY, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    WHITENED,
)

s, b, a0 = sp.symbols("s b a_0", real=True)
a, c, c0 = sp.symbols("a c c_0", real=True)
SCALAR = "Scalar; nothing depends on a size."
CHAIN = (
    r"One mode: input weight a, readout c, feedback b, task strength s; :math:`\dot a = b(s "
    r"- ac)`, :math:`\dot c = a(s - ac)`."
)


@derivation
def feedback_alignment_mode() -> Derivation:
    """Derive the conserved quantity of the scalar mode, the equation of a alone, and t(a)."""
    roots = sp.symbols("rho_1:4")
    shift = c0 - a0**2 / (2 * b)
    readout = c0 + (a**2 - a0**2) / (2 * b)
    speed = b * (s - a * readout)
    cubic = -sp.Rational(1, 2) * (a - roots[0]) * (a - roots[1]) * (a - roots[2])
    slopes = [cubic.diff(a).subs(a, root) for root in roots]
    form = sum(sp.log((a - root) / (a0 - root)) / slope for root, slope in zip(roots, slopes, strict=True))
    depressed = {roots[2]: -roots[0] - roots[1]}

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "Its derivative is the reciprocal of the velocity.",
                candidate.diff(a),
                1 / cubic,
                (RATIONAL,),
                key=True,
                shown=r"\frac{dt}{da}",
                shown_rhs=r"\frac{1}{-\frac{1}{2} (a - \rho_1)(a - \rho_2)(a - \rho_3)}",
            ),
            Step("The time starts at the start.", candidate.subs(a, a0), sp.Integer(0), shown="t(a_0)"),
        )

    shown = (
        r"\sum_{i = 1}^{3} \frac{1}{f'(\rho_i)} \ln \frac{a - \rho_i}{a_0 - \rho_i}, \quad "
        r"f(a) = -\tfrac{1}{2} (a - \rho_1)(a - \rho_2)(a - \rho_3)"
    )
    return Derivation(
        name="feedback_alignment_mode",
        title="Feedback alignment of one mode",
        statement=(
            "With a fixed feedback weight b the readout is a function of the input weight, which "
            "alone obeys an equation with a cubic velocity. "
            r"Its three roots :math:`\rho_i` (which add up to zero) give the time as a function of "
            r"the weight."
        ),
        assumptions=(
            WHITENED,
            CHAIN,
            r":math:`\lambda = 0`, :math:`b \neq 0`; distinct roots (else take the limit); a stays "
            r"between two neighbouring roots, where the logarithms are combined with equal signs.",
        ),
        steps=(
            Step(
                "The conserved quantity.",
                a * (s - a * c) - a / b * (b * (s - a * c)),
                sp.Integer(0),
                (EXPAND,),
                key=True,
                shown=r"\frac{d}{dt} \left( c - \frac{a^2}{2b} \right)",
            ),
            Step(
                "So the readout follows the input weight, and a alone obeys a cubic equation.",
                speed,
                b * s - b * shift * a - a**3 / 2,
                (EXPAND,),
                key=True,
                shown=r"\dot a",
            ),
            Step(
                "The cubic has no quadratic term: its roots add up to zero.",
                cubic.subs(depressed),
                roots[0] * roots[1] * depressed[roots[2]] / 2
                - (roots[0] * roots[1] + (roots[0] + roots[1]) * depressed[roots[2]]) * a / 2
                - a**3 / 2,
                (EXPAND,),
                shown=r"\left. -\tfrac12 (a - \rho_1)(a - \rho_2)(a - \rho_3) \right|_{\rho_3 = -\rho_1 - "
                r"\rho_2}",
            ),
            Step(
                "A root is a solution of the task.",
                speed.subs(s, a * readout),
                sp.Integer(0),
                (EXPAND,),
                shown=r"\left. \dot a \right|_{s = ac}",
            ),
        ),
        closed_form=ClosedForm("t(a)", form, (a, a0, *roots), conditions, shown),
        sizes=SCALAR,
        theory=("feedback_alignment_mode",),
        test="tests/test_derivations_vs_theory.py::test_feedback_alignment_mode",
        citations=("lillicrap2016", "refinetti2021"),
    )


@derivation
def deep_feedback_alignment_mode() -> Derivation:
    """Derive the conserved quantities of a scalar chain of three layers under feedback alignment."""
    w1, w2, w3 = sp.symbols("w_1:4", real=True)
    b1, b2 = sp.symbols("b_1:3", positive=True)
    error = s - w1 * w2 * w3
    velocity = {w1: b1 * b2 * error, w2: b2 * error * w1, w3: error * w1 * w2}

    def rate(quantity: sp.Expr) -> sp.Expr:
        return sum(quantity.diff(w) * v for w, v in velocity.items())

    second = w1**2 / (2 * b1)
    third = w1**4 / (8 * b1**2 * b2)
    product = w1 * second * third
    w = sp.Symbol("w", positive=True)
    rebuilt, power = product.subs(w1, w), sp.Rational(6, 7)
    constant = sp.simplify(rebuilt.diff(w) * b1 * b2 / rebuilt**power)
    balanced = s * w**2  # the velocity of each of three equal weights under backpropagation, at small c
    return Derivation(
        name="deep_feedback_alignment_mode",
        title="Feedback alignment of one mode in three layers",
        statement=(
            r"In a chain of three scalar weights with fixed feedback :math:`b_1` and :math:`b_2` "
            r"each weight is a function of the one below, :math:`w_{l+1} \propto w_l^2` from small "
            r"starts. "
            "The map grows as the seventh power of the first weight, and its initial rate as "
            ":math:`c^{6/7}`, against :math:`c^{4/3}` for backpropagation: feedback alignment "
            "leaves zero in finite time."
        ),
        assumptions=(
            WHITENED,
            r":math:`\dot w_1 = b_1b_2e`, :math:`\dot w_2 = b_2ew_1`, :math:`\dot w_3 = ew_1w_2` "
            r"with :math:`e = s - w_1w_2w_3`; positive feedback; :math:`\lambda = 0`; the powers "
            r"hold for zero weights at t = 0.",
        ),
        steps=(
            Step(
                "The first conserved quantity.",
                rate(w2 - second),
                sp.Integer(0),
                (EXPAND,),
                key=True,
                shown=r"\frac{d}{dt}\left( w_2 - \frac{w_1^2}{2 b_1} \right)",
            ),
            Step(
                "The second.",
                rate(w3 - w2**2 / (2 * b2)),
                sp.Integer(0),
                (EXPAND,),
                key=True,
                shown=r"\frac{d}{dt}\left( w_3 - \frac{w_2^2}{2 b_2} \right)",
            ),
            Step(
                "From zero weights the map is a seventh power.",
                (w1 * w2 * w3).subs(w3, w2**2 / (2 * b2)).subs(w2, second),
                product,
                (EXPAND,),
                shown="w_1 w_2 w_3",
                key=True,
            ),
            Step(
                "Its rate at small c, by the chain rule, is a pure power of c: no power of w is left over.",
                constant.diff(w),
                sp.Integer(0),
                (SIMPLIFY,),
                shown=r"\frac{d}{dw} \left( \frac{\dot c}{s\, c^{6/7}} \right)",
            ),
            Step(
                r"Backpropagation with three equal weights, :math:`c = w^3`, :math:`\dot w \approx sw^2`.",
                (w**3).diff(w) * balanced,
                3 * s * (w**3) ** sp.Rational(4, 3),
                (SIMPLIFY,),
                shown=r"\dot c",
                shown_rhs=r"3 s\, c^{4/3}",
            ),
        ),
        sizes=SCALAR,
        test="tests/test_derivations.py::test_every_derivation_verifies",
        citations=("girotti2021",),
    )
