"""Formula (2) written out at a small size: one hidden unit, one channel."""

from __future__ import annotations

from typing import Any

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

SIGMA = sp.Symbol("sigma", positive=True)
PHI, THETA = sp.symbols("phi theta", real=True)


def _upper(w: sp.Expr, gamma: sp.Expr, g: Any, z: Any) -> Any:
    """Return the first block of X without the decay, for explicit vectors or for symbols."""
    return w * (g + z * ((sp.cosh(SIGMA * t) - 1) * gamma + sp.sinh(SIGMA * t)))


def _lower(w: sp.Expr, gamma: sp.Expr, g: Any, z: Any, teacher: Any, start: Any) -> Any:
    """Return the second block of X without the decay."""
    along = gamma * (sp.sinh(SIGMA * t) / SIGMA - t) + (sp.cosh(SIGMA * t) - 1) / SIGMA
    return start + w * teacher * (g * t + z * along)


def _gain(w: sp.Expr, gamma: sp.Expr) -> sp.Expr:
    """Return the integral G of the squared first block."""

    def power(exponent: sp.Expr) -> sp.Expr:
        return (sp.exp(exponent * t) - 1) / exponent

    up, down = (1 + gamma) / 2, (1 - gamma) / 2
    growing, falling, mixed = (power(2 * rate - 2 * lam) for rate in (SIGMA, -SIGMA, sp.Integer(0)))
    return w**2 * (up**2 * growing + down**2 * falling + 2 * up * down * mixed)


def _in_words() -> str:
    """Return the closed form in LaTeX, written with the vectors it is made of."""
    w, gamma = sp.symbols("w gamma")
    g, z = sp.MatrixSymbol("g", 2, 1), sp.MatrixSymbol("z", 2, 1)
    teacher, start = sp.MatrixSymbol("A", 2, 2), sp.MatrixSymbol("W_2", 2, 1)
    blocks = (_upper(w, gamma, g, z), _lower(w, gamma, g, z, teacher, start), _gain(w, gamma))
    first, second, gain = map(sp.latex, blocks)
    return (
        r"\frac{X_2 X_1^T}{1 + 2 G}, \\ e^{\lambda t} X_1 = "
        + first
        + r", \\ e^{\lambda t} X_2 = "
        + second
        + r", \\ G = "
        + gain
    )


@derivation
def exact_trajectory_small() -> Derivation:
    """Evaluate formula (2) for one hidden unit and one channel, two inputs and two outputs."""
    a1, a2, p1, p2, b1, b2 = symbols = sp.symbols("a_1 a_2 p_1 p_2 b_1 b_2", real=True)
    z, g = (sp.ImmutableMatrix([sp.cos(x), sp.sin(x)]) for x in (PHI, THETA))
    p, w2 = sp.ImmutableMatrix([[p1, p2]]), sp.ImmutableMatrix([b1, b2])
    top = sp.ImmutableMatrix([[a1, a2]])
    teacher = sp.ImmutableMatrix(sp.Matrix.vstack(top, (SIGMA * z.T - p1 * top) / p2))
    w, gamma, fade = p1 * b1 + p2 * b2, sp.cos(THETA - PHI), sp.exp(-lam * t)
    upper, lower, gain = _upper(w, gamma, g, z), _lower(w, gamma, g, z, teacher, w2), _gain(w, gamma)
    form = sp.ImmutableMatrix(lower * upper.T * fade**2 / (1 + 2 * gain))
    tidy = Rewriting(
        "entry by entry, as polynomials in exponentials, cosines and sines over a common denominator",
        lambda value: value.applyfunc(_exact) if isinstance(value, sp.MatrixBase) else _exact(value),
    )
    by = (tidy,)

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        x1, x2 = fade * upper, fade * lower
        hidden, linear = (p * x2)[0, 0], r"A^T M X_2 - \lambda X_1"
        return (
            Step(
                r"The first block of :math:`\dot X = FX`; here :math:`PX_2` is a number and "
                r":math:`PA = \sigma z^\top`.",
                *(x1.diff(t), SIGMA * z * hidden - lam * x1, by),
                shown=r"\dot X_1",
                shown_rhs=linear,
            ),
            Step(
                "The second block.",
                *(x2.diff(t), teacher * x1 - lam * x2, by),
                shown=r"\dot X_2",
                shown_rhs=r"A X_1 - \lambda X_2",
            ),
            Step(
                "The first block starts at the hidden layer.", x1.subs(t, 0), w * g, by, shown="X_1(0)", shown_rhs="w g"
            ),
            Step("The second starts at the readout.", x2.subs(t, 0), w2, by, shown="X_2(0)", shown_rhs="W_2(0)"),
            Step(
                "The start is M-balanced.", ((w * g).T * (w * g))[0, 0], hidden.subs(t, 0) ** 2, by, shown="W_1 W_1^T"
            ),
            Step("The quadrature.", gain.diff(t), (x1.T * x1)[0, 0], by, shown=r"\dot G", shown_rhs="X_1^T X_1"),
            Step("It starts at zero.", gain.subs(t, 0), sp.Integer(0), by, shown="G(0)"),
            Step(
                "Formula (2).",
                *(candidate * (1 + 2 * gain), x2 * x1.T, by),
                shown=r"W_2 W_1(t)\, (1 + 2 G)",
                shown_rhs="X_2 X_1^T",
            ),
        )

    blind = sp.ImmutableMatrix([-z[1], z[0]])
    return Derivation(
        name="exact_trajectory_small",
        title="Formula (2) with one hidden unit",
        statement=(
            r"One hidden unit, one channel, two inputs and two outputs: :math:`W_1 = w g^\top` with "
            r":math:`g = (\cos\theta, \sin\theta)` and :math:`w = PW_2`, so that the start is M-balanced. With "
            r":math:`PA = \sigma z^\top`, :math:`z = (\cos\varphi, \sin\varphi)` and "
            r":math:`\gamma = g^\top z` formula (2) is elementary. For :math:`M \neq I` the matrix F is defective: "
            r"the second block holds a term linear in t."
        ),
        assumptions=(
            WHITENED,
            ALIGNED,
            r":math:`\lambda > 0`, :math:`\sigma > 0` and :math:`\lambda \neq \sigma`; else take the limit.",
            r"The second row of A is fixed by :math:`PA = \sigma z^\top`, which is no restriction when "
            r":math:`p_2 \neq 0`.",
        ),
        steps=(
            Step(
                r":math:`F + \lambda I` maps the input direction v with :math:`PAv = 0` (here orthogonal to z) to "
                r":math:`Av \neq 0`, and that to zero: F is defective.",
                explicit(A.T * P.T * P * A, {n: 2, m: 2, P.rows: 1}, {A: teacher, P: p}) * blind,
                sp.zeros(2, 1),
                by,
                shown=r"A^T M A\, v",
            ),
            Step(
                "Along that direction the readout grows linearly in t (before the decay).",
                sp.ImmutableMatrix(lower.diff(t) - teacher * z * (z.T * upper)),
                sp.ImmutableMatrix(w * teacher * blind * (blind.T * g)),
                by,
                shown=r"\frac{d}{dt} (e^{\lambda t} X_2) - A z z^T e^{\lambda t} X_1",
                shown_rhs=r"w A\, v v^T g",
            ),
        ),
        closed_form=ClosedForm("W_2 W_1(t)", form, (t, lam, SIGMA, PHI, THETA, *symbols), conditions, _in_words()),
        sizes="Explicit size m = n = 2, k = r = 1 with symbolic entries; all sizes in :doc:`exact_trajectory`.",
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("fukumizu1998", "braun2022"),
    )


def _exact(expr: sp.Expr) -> sp.Expr:
    """Return the numerator as a polynomial in exponentials, sines and cosines, reduced by sin^2 + cos^2 = 1."""
    probe = expr.subs(
        {symbol: sp.Rational(2 * i + 3, 7) for i, symbol in enumerate(sorted(expr.free_symbols, key=str))}
    )
    if not abs(sp.N(probe, 50)) < 1e-40:  # not zero at one point (or not a number): no need for the normal form
        return expr
    expr = sp.expand_trig(_hyperbolic_to_exp(expr))
    top = sp.expand(sp.numer(sp.together(sp.expand(expr, power_exp=True))), power_exp=True)
    for angle in (PHI, THETA):
        cosine = sp.Symbol(f"cos_{angle.name}")
        top = sp.rem(sp.expand(top.subs(sp.cos(angle), cosine)), cosine**2 + sp.sin(angle) ** 2 - 1, cosine)
    return sp.expand(top, power_exp=True)


def _hyperbolic_to_exp(expr: sp.Expr) -> sp.Expr:
    """Write hyperbolic functions as exponentials and leave the angles alone."""
    return expr.replace(sp.cosh, lambda x: (sp.exp(x) + sp.exp(-x)) / 2).replace(
        sp.sinh, lambda x: (sp.exp(x) - sp.exp(-x)) / 2
    )
