"""The closed form of the whole trajectory from M-balanced starts, for all sizes, and evaluated at a small one."""

from __future__ import annotations

from functools import reduce
from operator import add

import sympy as sp
from sympy.polys.matrices import DomainMatrix

from derivations.algebra import along, all_sizes, at_sizes, entries, explicit, rate, unit
from derivations.core import EXPAND, ClosedForm, Derivation, Rewriting, Step, derivation
from derivations.setting import (
    ALIGNED,
    MATHEMATICAL_SHAPES,
    WHITENED,
    A,
    P,
    k,
    lam,
    m,
    n,
    t,
)

X1, X2 = sp.MatrixSymbol("X_1", n, k), sp.MatrixSymbol("X_2", m, k)
N = sp.MatrixSymbol("N", k, k)  # stands for the inverse of I + 2 G
T = sp.MatrixSymbol("T", k, k)
LINEAR = {X1: A.T * P.T * P * X2 - lam * X1, X2: A * X1 - lam * X2, N: -2 * N * X1.T * X1 * N}
BALANCED = (X2.T * P.T * P * X2, X1.T * X1)
ORDER = 4
GIVEN = ":math:`N = N^\\top` and :math:`X_1^\\top X_1 = X_2^\\top M X_2`"


def _balanced_example() -> Rewriting:
    """Return a check at a generic M-balanced point: r = 1, m = n = k = 2, X1 = (unit vector) (P X2)."""
    x2, p, direction = entries(X2, 2, 2), entries(P, 1, 2), unit(sp.Symbol("tau", real=True))
    values = {X1: direction * p * x2, X2: x2, P: p, N: entries(N, 2, 2, symmetric=True)}
    return at_sizes({n: 2, k: 2, m: 2, sp.Symbol("r", integer=True, positive=True): 1}, values,
                    finish=lambda expr: sp.cancel(sp.together(expr)))  # fmt: skip


def taylor_difference(order: int, *, gain: int = 2) -> list[sp.ImmutableMatrix]:
    """Return the Taylor coefficients of formula (2) minus those of the flow, at an explicit M-balanced start.

    The flow's come from its own recursion (Cauchy products), formula (2)'s from the power series of exp(F t) and of the inverse of
    ``I + gain * integral``; any other gain than 2 leaves something over.
    """
    p, a, b = (sp.symbols(names, real=True) for names in ("p_1:3", "a_1:5", "b_1:5"))
    ring = sp.QQ[(*p, *a, *b, lam)]

    def matrix(*rows: list) -> DomainMatrix:
        return DomainMatrix.from_Matrix(sp.Matrix(rows)).convert_to(ring).to_sparse()

    def product(left: list[DomainMatrix], right: list[DomainMatrix], i: int) -> DomainMatrix:
        return reduce(add, (left[j] * right[i - j] for j in range(i + 1)))

    def scaled(value: DomainMatrix, factor: sp.Expr) -> DomainMatrix:
        return value * ring.from_sympy(sp.sympify(factor))

    channel, teacher = matrix(p), matrix(a[:2], a[2:])
    first, second = [], [matrix(b[:2], b[2:])]
    first.append((channel * second[0]).transpose() * matrix([sp.Rational(3, 5), sp.Rational(4, 5)]))
    upper, lower = [first[0].transpose()], [second[0]]
    metric, eye = channel.transpose() * channel, matrix([1, 0], [0, 1])
    maps = [second[0] * first[0]]
    gained, inverse = [eye], [eye]
    for i in range(order):
        step = sp.Rational(1, i + 1)
        error = [teacher - maps[0], *(-value for value in maps[1:])]
        back = product([w.transpose() * metric for w in second], error, i)
        ahead = product(error, [w.transpose() for w in first], i)
        first.append(scaled(back - scaled(first[i], lam), step))
        second.append(scaled(ahead - scaled(second[i], lam), step))
        maps.append(product(second, first, i + 1))
        gained.append(scaled(product([x.transpose() for x in upper], upper, i), gain * step))
        upper_next = scaled(teacher.transpose() * metric * lower[i] - scaled(upper[i], lam), step)
        lower.append(scaled(teacher * upper[i] - scaled(lower[i], lam), step))
        upper.append(upper_next)
        inverse.append(-product(gained[1:], inverse, i))
    half = [product(lower, inverse, i) for i in range(order + 1)]
    formula = [product(half, [x.transpose() for x in upper], i) for i in range(order + 1)]
    return [sp.ImmutableMatrix((left - right).to_Matrix()) for left, right in zip(formula, maps, strict=True)]


@derivation
def exact_trajectory() -> Derivation:
    """Derive formula (2), the trajectory of the network's map from an M-balanced start."""
    both = (all_sizes(BALANCED, symmetric=(N,), given=GIVEN), _balanced_example())
    V1, V2, H = sp.MatrixSymbol("V_1", n, k), sp.MatrixSymbol("V_2", m, k), sp.MatrixSymbol("H", k, k)
    weights = all_sizes((V2.T * P.T * P * V2, H), (V1.T * V1, H), symmetric=(H,),
                        given=":math:`V_1 = W_1^\\top`, :math:`V_2 = W_2`, :math:`W_1W_1^\\top = W_2^\\top M W_2 = H`")  # fmt: skip
    metric, network = P.T * P, X2 * N * X1.T
    gauge = {T: -T * T.T * X1.T * X1 * T}
    product_rule = {**LINEAR, **gauge}
    balance = X1.T * X1 - X2.T * metric * X2
    return Derivation(
        name="exact_trajectory",
        title="Closed form of the whole trajectory",
        statement=(
            "From an M-balanced start the stacked weights :math:`[W_1^\\top; W_2]` are a linear flow :math:`X(t) = e^{Ft}X(0)` times a "
            "hidden square matrix, with :math:`F = [[-\\lambda I, A^\\top M], [A, -\\lambda I]]`. The network's map is "
            ":math:`W_2W_1(t) = X_2 N X_1^\\top` with :math:`N = (I + 2\\int_0^t X_1^\\top X_1 ds)^{-1}`. For :math:`M = I` this is the known matrix "
            "Riccati solution of backpropagation; for :math:`M = P^\\top P` it is a corollary (that solution for :math:`(W_1, PW_2)`, "
            "the shift :math:`-\\lambda`, and one quadrature for the rest of :math:`W_2`)."
        ),
        assumptions=(
            WHITENED, ALIGNED, "M-balanced start, :math:`W_1W_1^\\top = W_2^\\top M W_2` at t = 0; then at all t (see M-balancedness).",
            "N is the inverse of :math:`I + 2G` with :math:`\\dot G = X_1^\\top X_1`, so :math:`\\dot N = -2 N X_1^\\top X_1 N` and :math:`N = I` at t = 0.",
        ),
        steps=(
            Step("The flow of the stacked weights :math:`V = [W_1^\\top; W_2]` is linear up to a factor from the right. Upper part:",
                 (A - V2 * V1.T).T * metric * V2 - lam * V1, A.T * metric * V2 - lam * V1 - V1 * H, (weights,), shown=r"\dot V_1"),
            Step("Lower part:", (A - V2 * V1.T) * V1 - lam * V2, A * V1 - lam * V2 - V2 * H, (weights,), shown=r"\dot V_2"),
            rate("Hence :math:`V = XT` with :math:`\\dot X = FX` and :math:`\\dot T = -TH`, where :math:`H = V_1^\\top V_1 = T^\\top X_1^\\top X_1 T`. Upper part:",
                 X1 * T, product_rule, A.T * metric * (X2 * T) - lam * X1 * T - (X1 * T) * (X1 * T).T * (X1 * T), (all_sizes(),)),
            rate("Lower part:", X2 * T, product_rule, A * (X1 * T) - lam * X2 * T - (X2 * T) * (X1 * T).T * (X1 * T), (all_sizes(),)),
            rate("The product :math:`TT^\\top` obeys the equation of N, with the same start, so :math:`VV^\\top = XNX^\\top`.",
                 T * T.T, product_rule, -2 * (T * T.T) * X1.T * X1 * (T * T.T), (all_sizes(),)),
            rate("X stays M-balanced.", balance, LINEAR, -2 * lam * balance, (all_sizes(), at_sizes({n: 2, k: 2, m: 2, P.rows: 1}))),
            Step("Direct check: the formula solves the equation of motion of the map, "
                 ":math:`\\dot C = E\\,W_1^\\top W_1 + W_2 W_2^\\top M E - 2\\lambda C`, "
                 "in which :math:`W_1^\\top W_1 = X_1NX_1^\\top` and :math:`W_2W_2^\\top = X_2NX_2^\\top`.",
                 along(network, LINEAR),
                 (A - network) * X1 * N * X1.T + X2 * N * X2.T * metric * (A - network) - 2 * lam * network, both, key=True,
                 shown=r"\frac{d}{dt} \left( X_{2} N X_{1}^{T} \right)"),
            *(Step(f"Independent of the above, as a power series in t with symbolic entries (m = n = k = 2, r = 1): the coefficient of order {order}.",
                   difference, sp.zeros(2, 2), (EXPAND,), shown=rf"[t^{order}] \left( X_2 N X_1^T - W_2 W_1 \right)")
              for order, difference in enumerate(taylor_difference(ORDER))),
        ),
        sizes="All sizes for the equations of motion; the power series to fourth order at the explicit size m = n = k = 2, r = 1 only. " + MATHEMATICAL_SHAPES,
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("fukumizu1998", "braun2022", "saxe2013", "hanut2025"),
    )  # fmt: skip


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
    gain = w**2 * (up**2 * power(2 * sigma - 2 * lam) + down**2 * power(-2 * sigma - 2 * lam) + 2 * up * down * power(-2 * lam))
    form = sp.ImmutableMatrix(lower * upper.T * fade**2 / (1 + 2 * gain))
    tidy = Rewriting(
        "by writing everything in exponentials and polynomials of cosines and sines, over a common denominator",
        lambda value: value.applyfunc(_exact) if isinstance(value, sp.MatrixBase) else _exact(value),
    )

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        x1, x2 = fade * upper, fade * lower
        hidden = (p * x2)[0, 0]
        return (
            Step("The first block of :math:`\\dot X = FX`; here :math:`PX_2` is a number and :math:`PA = \\sigma (\\cos\\varphi, \\sin\\varphi)`.",
                 x1.diff(t), sigma * z * hidden - lam * x1, (tidy,), shown=r"\dot X_1"),
            Step("The second block.", x2.diff(t), teacher * x1 - lam * x2, (tidy,), shown=r"\dot X_2"),
            Step("What the channel sees of the readout.", hidden, fade * seen, (tidy,), shown="P X_2"),
            Step("The start is M-balanced.", (upper.T * upper)[0, 0].subs(t, 0), (p * w2)[0, 0] ** 2, (tidy,), shown="X_1(0)^T X_1(0)"),
            Step("The quadrature.", gain.diff(t), (x1.T * x1)[0, 0], (tidy,), shown=r"\dot G"),
            Step("Its start.", gain.subs(t, 0), sp.Integer(0), (tidy,), shown="G(0)"),
            Step("Formula (2).", candidate * (1 + 2 * gain), x2 * x1.T, (tidy,), shown="W_2 W_1(t) (1 + 2G)"),
        )  # fmt: skip

    shown = r"\frac{X_2 X_1^T}{1 + 2 G}, \quad G = " + sp.latex(gain)
    return Derivation(
        name="exact_trajectory_small",
        title="Formula (2) with one hidden unit",
        statement=(
            "One hidden unit, one channel, two inputs and two outputs: :math:`W_1 = (PW_2)(\\cos\\theta, \\sin\\theta)` and :math:`W_2 = (b_1, b_2)^\\top`. "
            "With :math:`M \\neq I` the matrix F is defective here: the second block holds a term linear in t."
        ),
        assumptions=(
            WHITENED, ALIGNED, ":math:`\\lambda > 0` and :math:`\\lambda \\neq \\sigma`, where :math:`\\sigma = \\lVert PA \\rVert`; else take the limit.",
            "The second row of A is fixed by :math:`PA = \\sigma(\\cos\\varphi, \\sin\\varphi)`, which is no restriction when :math:`p_2 \\neq 0`.",
        ),
        steps=(
            Step("F + :math:`\\lambda I` squares to zero on a direction v with :math:`PAv = 0`, although it does not vanish there: F is defective.",
                 explicit(A.T * P.T * P * A, {n: 2, m: 2, P.rows: 1}, {A: teacher, P: p}) * sp.Matrix([-z[1], z[0]]), sp.zeros(2, 1),
                 (tidy,), shown=r"A^T M A\, v"),
            Step("The unseen output keeps growing linearly in t along it (before the decay).",
                 (lower.diff(t) - w * teacher * z * z.dot(upper / w)), w * teacher * (g - z * gamma), (tidy,),
                 shown=r"\frac{d}{dt} (e^{\lambda t} X_2) - A z z^T e^{\lambda t} X_1"),
        ),
        closed_form=ClosedForm("W_2 W_1(t)", form, (t, lam, sigma, phi, theta, *symbols), conditions, shown),
        sizes="Explicit size m = n = 2, k = r = 1 with symbolic entries; all sizes in :doc:`exact_trajectory`.",
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("fukumizu1998", "braun2022"),
    )  # fmt: skip


def _exact(expr: sp.Expr) -> sp.Expr:
    """Bring exponentials and angles to a normal form: a polynomial in independent symbols, reduced by sin^2 + cos^2 = 1."""
    angles = [sp.Symbol(name, real=True) for name in ("phi", "theta")]
    expr = sp.expand_trig(expr.rewrite(sp.exp) if not expr.has(sp.cos, sp.sin) else _hyperbolic_to_exp(expr))
    top = sp.expand(sp.numer(sp.together(sp.expand(expr, power_exp=True))), power_exp=True)
    for angle in angles:
        cosine = sp.Symbol(f"cos_{angle.name}")
        top = sp.rem(sp.expand(top.subs(sp.cos(angle), cosine)), cosine**2 + sp.sin(angle) ** 2 - 1, cosine)
    return sp.expand(top, power_exp=True)


def _hyperbolic_to_exp(expr: sp.Expr) -> sp.Expr:
    """Write hyperbolic functions as exponentials and leave the angles alone."""
    return expr.replace(sp.cosh, lambda x: (sp.exp(x) + sp.exp(-x)) / 2).replace(sp.sinh, lambda x: (sp.exp(x) - sp.exp(-x)) / 2)
