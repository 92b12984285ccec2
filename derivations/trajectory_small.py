"""Formula (2) written out at a small size: one hidden unit, one channel."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import explicit
from derivations.core import ClosedForm, Derivation, Rewriting, Step
from derivations.registry import derivation
from derivations.setting import (
    ALIGNED,
    WHITENED,
    A,
    P,
    lam,
    m,
    n,
    t,
)


@derivation
def exact_trajectory_small() -> Derivation:
    """Evaluate formula (2) for one hidden unit and one channel, two inputs and two outputs."""
    sigma = sp.Symbol("sigma", positive=True)
    phi, theta = sp.symbols("phi theta", real=True)
    a1, a2, p1, p2, b1, b2 = symbols = sp.symbols("a_1 a_2 p_1 p_2 b_1 b_2", real=True)
    z, g = (sp.ImmutableMatrix([sp.cos(x), sp.sin(x)]) for x in (phi, theta))
    p, w2 = sp.ImmutableMatrix([[p1, p2]]), sp.ImmutableMatrix([b1, b2])
    top = sp.ImmutableMatrix([[a1, a2]])
    teacher = sp.ImmutableMatrix(sp.Matrix.vstack(top, (sigma * z.T - p1 * top) / p2))
    w, gamma = p1 * b1 + p2 * b2, sp.cos(theta - phi)
    cosh, sinh, fade = sp.cosh(sigma * t), sp.sinh(sigma * t), sp.exp(-lam * t)
    upper = w * (g + z * ((cosh - 1) * gamma + sinh))
    lower = w2 + teacher * w * (g * t + z * (gamma * (sinh / sigma - t) + (cosh - 1) / sigma))
    seen = w * (cosh + gamma * sinh)

    def power(rate_: sp.Expr) -> sp.Expr:
        return (sp.exp(rate_ * t) - 1) / rate_

    up, down = (1 + gamma) / 2, (1 - gamma) / 2
    gain = w**2 * (
        up**2 * power(2 * sigma - 2 * lam) + down**2 * power(-2 * sigma - 2 * lam) + 2 * up * down * power(-2 * lam)
    )
    form = sp.ImmutableMatrix(lower * upper.T * fade**2 / (1 + 2 * gain))
    tidy = Rewriting(
        "by writing everything in exponentials and polynomials of cosines and sines, over a common denominator",
        lambda value: value.applyfunc(_exact) if isinstance(value, sp.MatrixBase) else _exact(value),
    )

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        x1, x2 = fade * upper, fade * lower
        hidden = (p * x2)[0, 0]
        return (
            Step(
                r"The first block of :math:`\dot X = FX`; here :math:`PX_2` is a number and :math:`PA = "
                r"\sigma (\cos\varphi, \sin\varphi)`.",
                x1.diff(t),
                sigma * z * hidden - lam * x1,
                (tidy,),
                shown=r"\dot X_1",
            ),
            Step("The second block.", x2.diff(t), teacher * x1 - lam * x2, (tidy,), shown=r"\dot X_2"),
            Step("What the channel sees of the readout.", hidden, fade * seen, (tidy,), shown="P X_2"),
            Step(
                "The start is M-balanced.",
                (upper.T * upper)[0, 0].subs(t, 0),
                (p * w2)[0, 0] ** 2,
                (tidy,),
                shown="X_1(0)^T X_1(0)",
            ),
            Step("The quadrature.", gain.diff(t), (x1.T * x1)[0, 0], (tidy,), shown=r"\dot G"),
            Step("Its start.", gain.subs(t, 0), sp.Integer(0), (tidy,), shown="G(0)"),
            Step("Formula (2).", candidate * (1 + 2 * gain), x2 * x1.T, (tidy,), shown="W_2 W_1(t) (1 + 2G)"),
        )

    shown = r"\frac{X_2 X_1^T}{1 + 2 G}, \quad G = " + sp.latex(gain)
    return Derivation(
        name="exact_trajectory_small",
        title="Formula (2) with one hidden unit",
        statement=(
            r"One hidden unit, one channel, two inputs and two outputs: :math:`W_1 = "
            r"(PW_2)(\cos\theta, \sin\theta)` and :math:`W_2 = (b_1, b_2)^\top`. "
            r"With :math:`M \neq I` the matrix F is defective here: the second block holds a term "
            r"linear in t."
        ),
        assumptions=(
            WHITENED,
            ALIGNED,
            r":math:`\lambda > 0` and :math:`\lambda \neq \sigma`, where :math:`\sigma = \lVert PA "
            r"\rVert`; else take the limit.",
            r"The second row of A is fixed by :math:`PA = \sigma(\cos\varphi, \sin\varphi)`, which "
            r"is no restriction when :math:`p_2 \neq 0`.",
        ),
        steps=(
            Step(
                r"F + :math:`\lambda I` squares to zero on a direction v with :math:`PAv = 0`, although "
                r"it does not vanish there: F is defective.",
                explicit(A.T * P.T * P * A, {n: 2, m: 2, P.rows: 1}, {A: teacher, P: p}) * sp.Matrix([-z[1], z[0]]),
                sp.zeros(2, 1),
                (tidy,),
                shown=r"A^T M A\, v",
            ),
            Step(
                "The unseen output keeps growing linearly in t along it (before the decay).",
                (lower.diff(t) - w * teacher * z * z.dot(upper / w)),
                w * teacher * (g - z * gamma),
                (tidy,),
                shown=r"\frac{d}{dt} (e^{\lambda t} X_2) - A z z^T e^{\lambda t} X_1",
            ),
        ),
        closed_form=ClosedForm("W_2 W_1(t)", form, (t, lam, sigma, phi, theta, *symbols), conditions, shown),
        sizes="Explicit size m = n = 2, k = r = 1 with symbolic entries; all sizes in :doc:`exact_trajectory`.",
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("fukumizu1998", "braun2022"),
    )


def _exact(expr: sp.Expr) -> sp.Expr:
    """Return the numerator as a polynomial in exponentials, sines and cosines, reduced by sin^2 + cos^2 = 1."""
    angles = [sp.Symbol(name, real=True) for name in ("phi", "theta")]
    expr = sp.expand_trig(expr.rewrite(sp.exp) if not expr.has(sp.cos, sp.sin) else _hyperbolic_to_exp(expr))
    top = sp.expand(sp.numer(sp.together(sp.expand(expr, power_exp=True))), power_exp=True)
    for angle in angles:
        cosine = sp.Symbol(f"cos_{angle.name}")
        top = sp.rem(sp.expand(top.subs(sp.cos(angle), cosine)), cosine**2 + sp.sin(angle) ** 2 - 1, cosine)
    return sp.expand(top, power_exp=True)


def _hyperbolic_to_exp(expr: sp.Expr) -> sp.Expr:
    """Write hyperbolic functions as exponentials and leave the angles alone."""
    return expr.replace(sp.cosh, lambda x: (sp.exp(x) + sp.exp(-x)) / 2).replace(
        sp.sinh, lambda x: (sp.exp(x) - sp.exp(-x)) / 2
    )
