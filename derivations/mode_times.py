"""Half times of modes, and the mode solution of backpropagation."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import WHITENED, t
from derivations.single_mode import MODE, SCALAR, c0, kappa, logistic, root, s


@derivation
def half_time() -> Derivation:
    """Derive the time a mode needs to reach half of its task strength without weight decay."""
    form = sp.log(s / c0 - 1) / (2 * root * s)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        text = "At that time the mode has half its strength."
        return (Step(text, logistic(sp.Integer(0)).subs(t, candidate), s / 2, key=True, shown="c(t_{1/2})"),)

    share = sp.Symbol("nu", positive=True)
    return Derivation(
        name="half_time",
        title="Time to half of a mode's strength",
        statement=r"Without weight decay a channel that sees the share :math:`\kappa` of a direction "
        r"makes learning slower by :math:`1/\sqrt\kappa`, and not impossible.",
        assumptions=(
            *MODE,
            r":math:`\lambda = 0` and :math:`c_0 < s`; the time is negative for :math:`c_0 > s/2`.",
        ),
        steps=(
            Step(
                r"Halving the root of :math:`\kappa` doubles the time.",
                form.subs(kappa, kappa * share),
                form / sp.sqrt(share),
                shown=r"t_{1/2}(\nu \kappa)",
                shown_rhs=r"t_{1/2}(\kappa) / \sqrt{\nu}",
            ),
        ),
        closed_form=ClosedForm("t_{1/2}", form, (s, c0, kappa), conditions),
        sizes=SCALAR,
        theory=("time_to_half",),
        test="tests/test_derivations_vs_theory.py::test_time_to_half",
        citations=("saxe2013",),
    )


@derivation
def saxe_mode() -> Derivation:
    """Derive the mode solution of backpropagation in its published form."""
    a0 = sp.Symbol("a_0", positive=True)
    form = s * sp.exp(2 * s * t) / (sp.exp(2 * s * t) - 1 + s / a0)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It solves the equation of a balanced mode under backpropagation.",
                candidate.diff(t),
                2 * candidate * (s - candidate),
                shown=r"\dot a(t)",
                shown_rhs="2a(s - a)",
                key=True,
            ),
            Step("It starts at the given strength.", candidate.subs(t, 0), a0, shown="a(0)"),
            Step(
                "It ends at the strength of the task.",
                sp.Limit(candidate, t, sp.oo),
                s,
                (EVALUATE,),
                shown=r"\lim_{t\to\infty} a(t)",
            ),
            Step(
                "It is the logistic curve of a fully visible mode without weight decay.",
                logistic(sp.Integer(0)).subs({kappa: 1, c0: a0}),
                candidate,
                shown=r"\left. c(t) \right|_{\kappa = 1,\, \lambda = 0}",
            ),
        )

    x, y = sp.symbols("x y", positive=True)
    return Derivation(
        name="saxe_mode",
        title="Backpropagation: the mode solution of Saxe et al.",
        statement="With full feedback and no weight decay each balanced mode of a two-layer linear "
        "network learns independently along a sigmoid.",
        assumptions=(
            WHITENED,
            r"Backpropagation; weights aligned with the singular vectors of the task, balanced; "
            r":math:`\lambda = 0`.",
        ),
        steps=(
            Step(
                "For scalar weights x and y the strength a = xy obeys the equation on the balanced line.",
                (y * (s - x * y) * y + x * x * (s - x * y)).subs(y, x),
                2 * x**2 * (s - x**2),
                (EVALUATE,),
                shown=r"\left.(\dot x y + x \dot y)\right|_{y = x}",
            ),
        ),
        closed_form=ClosedForm("a(t)", form, (t, s, a0), conditions),
        sizes=SCALAR,
        theory=("mode_strength",),
        test="tests/test_derivations_vs_theory.py::test_saxe_mode",
        citations=("saxe2013",),
    )
