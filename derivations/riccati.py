"""The matrix Riccati equation of balanced weights: the known solution of backpropagation as the case M = I."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, along, at_sizes, entries, rate, unit
from derivations.core import Derivation, Step, rational
from derivations.registry import derivation
from derivations.setting import MATHEMATICAL_SHAPES, WHITENED, k, m, n


@derivation
def riccati() -> Derivation:
    """Derive the Riccati equation of backpropagation from balanced weights and its published solution."""
    size = sp.Symbol("p", integer=True, positive=True)  # n + m
    F, V, H = sp.MatrixSymbol("F", size, size), sp.MatrixSymbol("V", size, k), sp.MatrixSymbol("H", k, k)
    X, N = sp.MatrixSymbol("X", size, k), sp.MatrixSymbol("N", k, k)
    J = sp.MatrixSymbol("J", size, size)  # the inverse of F
    flow = {V: F * V - V * H}
    symmetric = all_sizes((V.T * V, 2 * H), symmetric=(F, H), given=r"symmetric F and :math:`V^\top V = 2H`")
    linear = {X: F * X, N: -N * X.T * X * N}
    closed = all_sizes(
        (J * F, sp.Identity(size)),
        (F * J, sp.Identity(size)),
        symmetric=(F, N, J),
        given="symmetric F and :math:`J = F^{-1}`",
    )
    plain = all_sizes(symmetric=(F, N), given="symmetric F and N")
    sizes = {size: 3, k: 2}
    values = {F: entries(F, 3, 3, symmetric=True), N: entries(N, 2, 2, symmetric=True)}
    inverse = {**values, J: entries(F, 3, 3, symmetric=True).inv()}
    square = V * V.T
    formula = X * N * X.T
    gram = X.T * J * X / 2
    upper, lower = sp.MatrixSymbol("X_1", n, k), sp.MatrixSymbol("X_2", m, k)
    halves = all_sizes((lower.T * lower, upper.T * upper), given=r":math:`X_1^\top X_1 = X_2^\top X_2`")
    cosine, sine = unit(sp.Symbol("tau", real=True))
    turn = sp.Matrix([[cosine, -sine], [sine, cosine]])
    return Derivation(
        name="riccati",
        title="Backpropagation: the matrix Riccati solution",
        statement=(
            r"For :math:`M = I`, :math:`\lambda = 0` and balanced weights the matrix :math:`Z = "
            r"VV^\top` of the stacked weights :math:`V = [W_1^\top; W_2]` obeys a Riccati equation "
            r"with :math:`F = [[0, A^\top], [A, 0]]`; its solution is :math:`Z = XNX^\top` with "
            r":math:`X = e^{Ft}V(0)` and "
            r":math:`N = (I + \frac12 X^\top F^{-1} X - \frac12 V(0)^\top F^{-1} V(0))^{-1}`. "
            r"Balance makes :math:`\int X^\top X\,ds = 2\int X_1^\top X_1\,ds`: this is formula (2)."
        ),
        assumptions=(
            WHITENED,
            "Backpropagation, no weight decay.",
            r"Balanced start, :math:`W_1W_1^\top = W_2^\top W_2 = H`.",
            "F is invertible in the last form (square, invertible A); the integral form needs no inverse.",
        ),
        steps=(
            Step(
                r"The stacked weights obey :math:`\dot V = FV - VH` (see :doc:`exact_trajectory`), and "
                r":math:`V^\top V = 2H`; hence the Riccati equation.",
                along(square, flow),
                F * square + square * F - square * square,
                (symmetric,),
                key=True,
                shown=r"\dot Z",
                shown_rhs="F Z + Z F - Z^2",
            ),
            Step(
                r"The formula :math:`Z = XNX^\top` solves it, with :math:`\dot X = FX` and :math:`\dot "
                r"N = -NX^\top XN`, the rate of the inverse of :math:`I + \int X^\top X\,ds`.",
                along(formula, linear),
                F * formula + formula * F - formula * formula,
                (plain, at_sizes(sizes, values)),
                key=True,
                shown=r"\frac{d}{dt} \left( X N X^{T} \right)",
            ),
            rate(
                "The integral in closed form, with :math:`J = F^{-1}`.",
                gram,
                linear,
                X.T * X,
                (closed, at_sizes(sizes, inverse, finish=rational)),
                key=True,
            ),
            Step(
                "On a balanced trajectory the two halves of the integrand are equal, so formula (2) is "
                "the same integral.",
                upper.T * upper + lower.T * lower,
                2 * upper.T * upper,
                (
                    halves,
                    at_sizes({n: 2, m: 2, k: 2}, {upper: turn * entries(lower, 2, 2)}, finish=rational),
                ),
                shown="X^T X",
            ),
        ),
        sizes="All sizes; once more at n + m = 3, k = 2 with symbolic entries. " + MATHEMATICAL_SHAPES,
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("fukumizu1998", "braun2022"),
    )
