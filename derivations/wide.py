"""Averages over Gaussian fields: the kernels of wide networks and the order parameters of committee machines."""

from __future__ import annotations

import sympy as sp

from derivations.core import SIMPLIFY, Derivation, Rewriting, Step
from derivations.registry import derivation

a, b = sp.symbols("a b", positive=True)
c = sp.Symbol("c", real=True)
theta = sp.Symbol("theta", positive=True)
SYMBOLIC = "Scalars, with symbolic covariances."


@derivation
def tangent_kernels() -> Derivation:
    """Derive that the slopes' average is the derivative of the products', for erf and ReLU."""
    arcsine = 2 / sp.pi * sp.asin(c / sp.sqrt((1 + a) * (1 + b)))
    slopes = 2 / sp.pi / sp.sqrt((1 + a) * (1 + b) - c**2)
    arccosine = (sp.sin(theta) + (sp.pi - theta) * sp.cos(theta)) / (2 * sp.pi)
    return Derivation(
        name="tangent_kernels",
        title="The kernels of a wide network",
        statement=(
            r"With :math:`\Sigma = \langle\phi(u)\phi(v)\rangle` over Gaussian fields of variances a, b and "
            r"covariance c, Price's theorem gives :math:`\langle\phi'(u)\phi'(v)\rangle = \partial\Sigma/\partial c`. "
            r"The two averages of erf (:math:`\phi(u) = \mathrm{erf}(u/\sqrt2)`) and ReLU (at the angle "
            r":math:`\theta` between the inputs, in units of :math:`\sqrt{ab}`) are such a pair."
        ),
        assumptions=(
            "Jointly Gaussian fields of mean zero, as those of independent normal weights are at infinite width.",
        ),
        steps=(
            Step(
                r"The derivative of the arcsine kernel is the average of the slopes, which are Gaussians.",
                sp.diff(arcsine, c),
                slopes,
                (
                    Rewriting(
                        "by comparing squares (both sides are positive)",
                        lambda difference: sp.simplify(
                            sp.diff(arcsine, c) ** 2 - (sp.diff(arcsine, c) - difference) ** 2
                        ),
                    ),
                ),
                key=True,
                shown=r"\frac{\partial}{\partial c}\,\frac{2}{\pi}\arcsin\frac{c}{\sqrt{(1+a)(1+b)}}",
            ),
            Step(
                r"The derivative of the arc-cosine kernel of order one by the cosine is that of order zero, the "
                r"probability that both units are active.",
                sp.diff(arccosine, theta) / sp.diff(sp.cos(theta), theta),
                (sp.pi - theta) / (2 * sp.pi),
                (SIMPLIFY,),
                key=True,
                shown=r"\frac{\partial}{\partial\cos\theta}\,\frac{\sin\theta + (\pi-\theta)\cos\theta}{2\pi}",
            ),
        ),
        sizes=SYMBOLIC,
        theory=("tangent_kernels",),
        test="tests/test_theory_wide.py::test_averages_by_quadrature",
        citations=("williams1998", "cho2009", "price1958"),
    )


@derivation
def committee_averages() -> Derivation:
    """Derive the averages of a committee machine of erf units by tilting the law of the fields."""
    fields = sp.Matrix(4, 4, lambda i, j: sp.Symbol(f"c_{min(i, j) + 1}{max(i, j) + 1}", real=True))

    def tilted(C: sp.Matrix, i: int) -> sp.Matrix:
        return (C - C[:, i] * C[i, :] / (1 + C[i, i])).applyfunc(sp.together)

    one = tilted(fields, 0)
    two = tilted(one, 1)
    c11, c12, c13, c22, c23, c33 = (fields[i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    second = (1 + c11) * (1 + c22) - c12**2

    def form(left: int, right: int, diagonal: int) -> sp.Expr:
        x, y = (fields[:, k] for k in (left, right))
        return (
            second * (fields[left, right] + diagonal) - x[1] * y[1] * (1 + c11) - x[0] * y[0] * (1 + c22)
            + c12 * (x[0] * y[1] + y[0] * x[1])
        )  # fmt: skip

    return Derivation(
        name="committee_averages",
        title="Averages of a committee machine",
        statement=(
            r"The slope of :math:`\mathrm{erf}(u/\sqrt2)` is the Gaussian :math:`\sqrt{2/\pi}\,e^{-u^2/2}`. As a "
            r"weight on field i it leaves the fields Gaussian, with covariance "
            r":math:`\tilde c_{jk} = c_{jk} - c_{ij}c_{ik}/(1+c_{ii})` and mass "
            r":math:`\sqrt{2/\pi}\,(1+c_{ii})^{-1/2}`. So :math:`\langle\phi'_1 u_2\phi_3\rangle` is that mass times "
            r":math:`\tilde c_{23}\sqrt{2/\pi}\,(1+\tilde c_{33})^{-1/2}` (Stein's identity), and "
            r":math:`\langle\phi'_1\phi'_2\phi_3\phi_4\rangle` the mass of both slopes times the arcsine kernel of the "
            r"twice tilted covariances. With the following equations they become the forms of Saad and Solla."
        ),
        assumptions=("Jointly Gaussian fields of mean zero.",),
        steps=(
            Step(
                r"The numerator of the average with one slope.",
                (1 + c11) * one[1, 2],
                c23 * (1 + c11) - c12 * c13,
                key=True,
                shown=r"(1+c_{11})\,\tilde c_{23}",
            ),
            Step(
                r"Its denominator: the determinant of fields 1 and 3 with added unit noise.",
                (1 + c11) * (1 + one[2, 2]),
                (1 + c11) * (1 + c33) - c13**2,
                key=True,
                shown=r"(1+c_{11})(1+\tilde c_{33})",
            ),
            Step(
                r"The mass of two slopes, :math:`\Lambda_4^{-1/2}`.",
                (1 + c11) * (1 + one[1, 1]),
                second,
                key=True,
                shown=r"(1+c_{11})(1+\tilde c_{22})",
            ),
            Step(
                r"The covariance of fields 3 and 4 after both tilts, :math:`\Lambda_0`.",
                second * two[2, 3],
                form(2, 3, 0),
                key=True,
                shown=r"\Lambda_4\,\tilde{\tilde c}_{34}",
            ),
            Step(
                r"The variance of field 3 after both tilts, :math:`\Lambda_1`.",
                second * (1 + two[2, 2]),
                form(2, 2, 1),
                key=True,
                shown=r"\Lambda_4\,(1+\tilde{\tilde c}_{33})",
            ),
        ),
        sizes=SYMBOLIC,
        theory=("committee_learning",),
        test="tests/test_theory_committee.py::test_flow_is_that_of_the_literature",
        citations=("saadsolla1995",),
    )
