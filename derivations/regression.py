"""Zero feedback: the readout's regression on features that receive no error."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, along, at_sizes, entries
from derivations.core import EVALUATE, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    MATHEMATICAL_SHAPES,
    W1,
    WHITENED,
    A,
    k,
    lam,
    m,
    n,
    t,
)


@derivation
def linear_regression_limit() -> Derivation:
    """Derive the readout's exact trajectory on features that receive no error (zero feedback)."""
    H, Y, G, W20 = (
        sp.MatrixSymbol(name, *shape) for name, shape in (("H", (k, k)), ("Y", (k, k)), ("G", (k, k)), ("W_20", (m, k)))
    )
    propagators = {Y: -Y * H, G: sp.Identity(k) - G * H}
    solution = W20 * Y + A * W1.T * G
    symmetric = all_sizes((W1 * W1.T, H), symmetric=(H, G), given=r":math:`W_1W_1^\top = H`")
    features = entries(W1, 2, 4)
    explicit_features = at_sizes({n: 4, k: 2, m: 3}, {H: features * features.T})
    s, h, c0, c = sp.symbols("s h c_0 c", positive=True)
    feature = sp.sqrt(h) * sp.exp(-lam * t)
    quotient = h / (2 * lam)
    argument = quotient * sp.exp(-2 * lam * t)
    integral = sp.exp(quotient) * (sp.Ei(-quotient) - sp.Ei(-argument)) / (2 * lam)
    form = sp.exp(-2 * lam * t - quotient + argument) * (c0 + s * h * integral)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        strength = h * sp.exp(-2 * lam * t)
        return (
            Step(
                "It solves the mode's equation with features that decay.",
                candidate.diff(t),
                (s - candidate) * strength - 2 * lam * candidate,
                shown=r"\dot c(t)",
                shown_rhs=r"(s - c) h e^{-2 \lambda t} - 2 \lambda c",
            ),
            Step("It starts at the given strength.", candidate.subs(t, 0), c0, shown="c(0)"),
        )

    plain = s + (c0 - s) * sp.exp(-h * t)
    return Derivation(
        name="linear_regression_limit",
        title="Zero feedback: linear regression on fixed features",
        statement=(
            "Without feedback the hidden layer only decays, and the readout regresses the teacher "
            "on it. This is also the lazy limit of a "
            r"wide hidden layer, whose weights hardly move. Each eigenvector of :math:`W_1W_1^\top` "
            r"with eigenvalue h (at t = 0) is "
            "an independent mode; c is its contribution to the map :math:`W_2W_1` and s the "
            "teacher's, both along the feature."
        ),
        assumptions=(WHITENED, "No feedback, :math:`QP = 0`.", "Equal weight decay on both layers."),
        steps=(
            Step(
                r"Without weight decay the features :math:`H = W_1W_1^\top` are constant and the "
                r"readout is linear in two propagators, "
                r":math:`\dot Y = -YH,\ Y(0) = I` and :math:`\dot G = I - GH,\ G(0) = 0`.",
                along(solution, propagators),
                (A - solution * W1) * W1.T,
                (symmetric, explicit_features),
                key=True,
                shown=rf"\frac{{d}}{{dt}} \left( {sp.latex(solution)} \right)",
            ),
            Step(
                "Its mode relaxes exponentially at the rate of the feature.",
                plain.diff(t),
                (s - plain) * h,
                shown=rf"\frac{{d}}{{dt}} \left( {sp.latex(plain)} \right)",
            ),
            Step(
                r"With weight decay the feature is :math:`f = \sqrt{h}\, e^{-\lambda t}`; its weight w obeys "
                r":math:`\dot w = (s - wf) f - \lambda w`, so that :math:`c = wf` decays through both "
                r"factors.",
                ((s - c) * feature - lam * c / feature) * feature - lam * c,
                (s - c) * h * sp.exp(-2 * lam * t) - 2 * lam * c,
                key=True,
                shown=r"\dot c = \dot w f + w \dot f",
            ),
            Step(
                "The Taylor coefficients of the closed form at t = 0 are those that the equation of motion demands.",
                sp.series(form, t, 0, 3).removeO(),
                c0
                + ((s - c0) * h - 2 * lam * c0) * t
                + (
                    (-(s - c0) * h + 2 * lam * c0) * h
                    - 2 * lam * (s - c0) * h
                    - 2 * lam * ((s - c0) * h - 2 * lam * c0)
                )
                * t**2
                / 2,
                (EVALUATE,),
                shown="c(t) + O(t^3)",
            ),
        ),
        closed_form=ClosedForm("c(t)", form, (t, s, h, c0, lam), conditions),
        sizes="The propagator equation holds for all sizes (and at the explicit size named in the "
        "step); the modes are scalar. " + MATHEMATICAL_SHAPES,
        theory=("readout_only_map",),
        test="tests/test_derivations_vs_theory.py::test_readout_only_mode",
        citations=("hanut2025", "saxe2013"),
    )
