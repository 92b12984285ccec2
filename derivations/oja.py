"""The Oja flow of the channel: orthonormality, the metric's equation and its closed form."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, along, at_sizes, entries, rate, unit
from derivations.core import EVALUATE, SIMPLIFY, ClosedForm, Derivation, Step, rational
from derivations.registry import derivation
from derivations.setting import MATHEMATICAL_SHAPES, P, m, r, t


@derivation
def oja_flow() -> Derivation:
    """Derive the closed form of the channel's metric under Oja's rule."""
    rho, c1, c2 = sp.symbols("rho c_1 c_2", positive=True)
    theta = sp.Symbol("theta", real=True)
    C, Y, N, M = (
        sp.MatrixSymbol(name, *shape) for name, shape in (("C", (m, m)), ("Y", (r, m)), ("N", (r, r)), ("M", (m, m)))
    )
    one, small = sp.Identity(m), sp.Identity(r)
    flow = {P: rho * P * C * (one - P.T * P)}
    # m = 3, r = 2; N is the true inverse, so the check does not use the words' relations
    y = sp.ImmutableMatrix(
        [[1, 0, sp.Symbol("y_1", real=True)], [0, sp.Symbol("y_2", real=True), sp.Symbol("y_3", real=True)]]
    )
    values = {C: entries(C, 3, 3, symmetric=True), Y: y, N: (y * y.T).inv()}
    closed = {Y: rho * Y * C, N: -2 * rho * N * Y * C * Y.T * N}
    metric = Y.T * N * Y
    drift = rho * ((one - M) * C * M + M * C * (one - M))
    symmetric = all_sizes(symmetric=(C, N, M), given="symmetric C and N")
    inverse = all_sizes((Y * Y.T * N, small), symmetric=(C, N), given=r":math:`N = (YY^\top)^{-1}`")
    orthonormal = all_sizes((P * P.T, small), symmetric=(C,), given=r":math:`PP^\top = I`")
    explicit_y = at_sizes({m: 3, r: 2}, values, finish=rational)
    turned = at_sizes(
        {m: 2, r: 1},
        {P: unit(sp.Symbol("tau", real=True)).T, C: entries(C, 2, 2, symmetric=True)},
        finish=rational,
    )
    grown = sp.Matrix([sp.cos(theta) * sp.exp(rho * c1 * t), sp.sin(theta) * sp.exp(rho * c2 * t)])
    form = sp.ImmutableMatrix(grown * grown.T / (grown.T * grown)[0, 0])

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        covariance, eye, start = sp.diag(c1, c2), sp.eye(2), sp.Matrix([sp.cos(theta), sp.sin(theta)])
        velocity = rho * ((eye - candidate) * covariance * candidate + candidate * covariance * (eye - candidate))
        gap = sp.Symbol("delta", positive=True)
        late = sp.ImmutableMatrix(candidate.subs(c1, c2 + gap)).applyfunc(
            lambda entry: sp.Limit(sp.simplify(entry.subs(theta, sp.pi / 6)), t, sp.oo)
        )
        return (
            Step(
                "At m = 2, r = 1 in the eigenbasis of C: the formula solves the flow of the metric.",
                candidate.diff(t),
                velocity,
                (SIMPLIFY,),
                shown=r"\dot M(t)",
                shown_rhs=r"\rho\left((I - M) C M + M C (I - M)\right)",
            ),
            Step(
                r"It starts at the metric of :math:`P_0 = (\cos\theta, \sin\theta)`.",
                candidate.subs(t, 0),
                sp.ImmutableMatrix(start * start.T),
                shown="M(0)",
            ),
            Step(
                r"It ends on the leading eigenvector (here from :math:`\theta = \pi/6`, with :math:`c_1 "
                r"> c_2`).",
                late,
                sp.ImmutableMatrix([[1, 0], [0, 0]]),
                (EVALUATE,),
                shown=r"\lim_{t \to \infty} M(t)",
            ),
        )

    shown = r"\frac{y y^T}{y^T y}, \quad y = " + sp.latex(grown) + r" \quad (m = 2,\ r = 1)"
    return Derivation(
        name="oja_flow",
        title="The Oja flow of the channel",
        statement=(
            r"Oja's rule keeps the rows of P orthonormal, and the metric :math:`M = P^\top P` "
            r"follows a closed equation, solved by "
            r":math:`M(t) = Y^\top (YY^\top)^{-1} Y` with :math:`Y = P_0 e^{\rho C t}`: the rows "
            r"grow linearly and are orthonormalised. It tends to the projector on the leading r "
            r"eigenvectors of C that :math:`P_0` can see."
        ),
        assumptions=(
            "C is constant and symmetric (labels, or errors that have stopped changing).",
            r":math:`P_0P_0^\top = I`.",
        ),
        steps=(
            rate(
                r"Orthonormal rows stay orthonormal: the rate of :math:`PP^\top` vanishes there.",
                P * P.T,
                flow,
                sp.ZeroMatrix(r, r),
                (orthonormal, turned),
                key=True,
            ),
            rate(
                "The metric obeys an equation of its own.",
                P.T * P,
                flow,
                rho * ((one - P.T * P) * C * P.T * P + P.T * P * C * (one - P.T * P)),
                (all_sizes(symmetric=(C,), given="symmetric C"),),
                key=True,
            ),
            Step(
                r"The closed form, with :math:`\dot Y = \rho YC` and the rate of the inverse :math:`N = "
                r"(YY^\top)^{-1}`, solves that equation.",
                along(metric, closed),
                drift.subs(M, metric).doit(),
                (symmetric, explicit_y),
                key=True,
                shown=r"\frac{d}{dt} \left( Y^{T} N Y \right)",
                shown_rhs=r"\rho\left((I - M) C M + M C (I - M)\right)_{M = Y^T N Y}",
            ),
            rate(
                "The stated rate of N is that of the inverse: the product stays I.",
                Y * Y.T * N,
                closed,
                sp.ZeroMatrix(r, r),
                (inverse, explicit_y),
            ),
            Step("The closed form is a projector.", metric * metric, metric, (inverse, explicit_y), shown="M^2"),
        ),
        closed_form=ClosedForm("M(t)", form, (t, theta, c1, c2, rho), conditions, shown),
        sizes="All sizes; the closed form once more at m = 3, r = 2 (generic up to a change of basis "
        "of the rows), written out and its limit taken at m = 2, r = 1. " + MATHEMATICAL_SHAPES,
        theory=("oja_metric",),
        test="tests/test_derivations_vs_theory.py::test_oja_metric",
        citations=("williams1985", "oja1989", "oja1982"),
    )
