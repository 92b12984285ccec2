"""The closed form of the whole trajectory from M-balanced starts."""

from __future__ import annotations

from functools import reduce
from operator import add

import sympy as sp
from sympy.polys.matrices import DomainMatrix

from derivations.algebra import all_sizes, along, at_sizes, entries, rate, unit
from derivations.core import EXPAND, Derivation, Rewriting, Step, rational
from derivations.registry import derivation
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
)

X1, X2 = sp.MatrixSymbol("X_1", n, k), sp.MatrixSymbol("X_2", m, k)
N = sp.MatrixSymbol("N", k, k)  # stands for the inverse of I + 2 G
T = sp.MatrixSymbol("T", k, k)
LINEAR = {X1: A.T * P.T * P * X2 - lam * X1, X2: A * X1 - lam * X2, N: -2 * N * X1.T * X1 * N}
BALANCED = (X2.T * P.T * P * X2, X1.T * X1)
ORDER = 4
GIVEN = r":math:`N = N^\top` and :math:`X_1^\top X_1 = X_2^\top M X_2`"


def _balanced_example() -> Rewriting:
    """Return a check at a generic M-balanced point: r = 1, m = n = k = 2, X1 = (unit vector) (P X2)."""
    x2, p, direction = entries(X2, 2, 2), entries(P, 1, 2), unit(sp.Symbol("tau", real=True))
    values = {X1: direction * p * x2, X2: x2, P: p, N: entries(N, 2, 2, symmetric=True)}
    return at_sizes(
        {n: 2, k: 2, m: 2, sp.Symbol("r", integer=True, positive=True): 1},
        values,
        finish=rational,
    )


def taylor_difference(order: int, *, gain: int = 2) -> list[sp.ImmutableMatrix]:
    """Return the Taylor coefficients of formula (2) minus those of the flow, at an explicit M-balanced start.

    The flow's come from its own recursion (Cauchy products), formula (2)'s from the power series of exp(F t) and
    of the inverse of ``I + gain * integral``; any other gain than 2 leaves something over.
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
    weights = all_sizes(
        (V2.T * P.T * P * V2, H),
        (V1.T * V1, H),
        symmetric=(H,),
        given=r":math:`V_1 = W_1^\top`, :math:`V_2 = W_2`, :math:`W_1W_1^\top = W_2^\top M W_2 = H`",
    )
    metric, network = P.T * P, X2 * N * X1.T
    gauge = {T: -T * T.T * X1.T * X1 * T}
    product_rule = {**LINEAR, **gauge}
    balance = X1.T * X1 - X2.T * metric * X2
    return Derivation(
        name="exact_trajectory",
        title="Closed form of the whole trajectory",
        statement=(
            r"From an M-balanced start the stacked weights :math:`[W_1^\top; W_2]` are a linear "
            r"flow :math:`X(t) = e^{Ft}X(0)` times a "
            r"hidden square matrix, with :math:`F = [[-\lambda I, A^\top M], [A, -\lambda I]]`. The "
            r"network's map is "
            r":math:`W_2W_1(t) = X_2 N X_1^\top` with :math:`N = (I + 2\int_0^t X_1^\top X_1 "
            r"ds)^{-1}`. For :math:`M = I` this is the known matrix "
            r"Riccati solution of backpropagation; for :math:`M = P^\top P` it is a corollary (that "
            r"solution for :math:`(W_1, PW_2)`, "
            r"the shift :math:`-\lambda`, and one quadrature for the rest of :math:`W_2`)."
        ),
        assumptions=(
            WHITENED,
            ALIGNED,
            r"M-balanced start, :math:`W_1W_1^\top = W_2^\top M W_2` at t = 0; then at all t (see "
            ":doc:`m_balancedness`).",
            r"N is the inverse of :math:`I + 2G` with :math:`\dot G = X_1^\top X_1`, so :math:`\dot "
            r"N = -2 N X_1^\top X_1 N` and :math:`N = I` at t = 0.",
        ),
        steps=(
            Step(
                r"The flow of the stacked weights :math:`V = [W_1^\top; W_2]` is linear up to a factor "
                r"from the right. Upper part:",
                (A - V2 * V1.T).T * metric * V2 - lam * V1,
                A.T * metric * V2 - lam * V1 - V1 * H,
                (weights,),
                shown=r"\dot V_1",
            ),
            Step(
                "Lower part:",
                (A - V2 * V1.T) * V1 - lam * V2,
                A * V1 - lam * V2 - V2 * H,
                (weights,),
                shown=r"\dot V_2",
            ),
            rate(
                r"Hence :math:`V = XT` with :math:`\dot X = FX` and :math:`\dot T = -TH`, where "
                r":math:`H = V_1^\top V_1 = T^\top X_1^\top X_1 T`. Upper part:",
                X1 * T,
                product_rule,
                A.T * metric * (X2 * T) - lam * X1 * T - (X1 * T) * (X1 * T).T * (X1 * T),
                (all_sizes(),),
            ),
            rate(
                "Lower part:",
                X2 * T,
                product_rule,
                A * (X1 * T) - lam * X2 * T - (X2 * T) * (X1 * T).T * (X1 * T),
                (all_sizes(),),
            ),
            rate(
                r"The product :math:`TT^\top` obeys the equation of N, with the same start, so "
                r":math:`VV^\top = XNX^\top`.",
                T * T.T,
                product_rule,
                -2 * (T * T.T) * X1.T * X1 * (T * T.T),
                (all_sizes(),),
            ),
            rate(
                "X stays M-balanced.",
                balance,
                LINEAR,
                -2 * lam * balance,
                (all_sizes(), at_sizes({n: 2, k: 2, m: 2, P.rows: 1})),
            ),
            Step(
                "Direct check: the formula solves the equation of motion of the map, "
                r":math:`\dot C = E\,W_1^\top W_1 + W_2 W_2^\top M E - 2\lambda C`, "
                r"in which :math:`W_1^\top W_1 = X_1NX_1^\top` and :math:`W_2W_2^\top = X_2NX_2^\top`.",
                along(network, LINEAR),
                (A - network) * X1 * N * X1.T + X2 * N * X2.T * metric * (A - network) - 2 * lam * network,
                both,
                key=True,
                shown=r"\frac{d}{dt} \left( X_{2} N X_{1}^{T} \right)",
            ),
            Step(
                "Independent of the above, as a power series in t with symbolic entries (m = n = k = 2, r = 1): "
                f"the coefficients of order 0 to {ORDER}, one below the other.",
                sp.Matrix.vstack(*taylor_difference(ORDER)),
                sp.zeros(2 * (ORDER + 1), 2),
                (EXPAND,),
                shown=r"[t^i] \left( X_2 N X_1^T - W_2 W_1 \right)_{i = 0, \dots, " + str(ORDER) + "}",
            ),
        ),
        sizes="All sizes for the equations of motion; the power series to fourth order at the "
        "explicit size m = n = k = 2, r = 1 only. " + MATHEMATICAL_SHAPES,
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("fukumizu1998", "braun2022", "saxe2013", "hanut2025"),
    )
