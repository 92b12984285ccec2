"""What a random channel sees of one direction: the Beta law."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, GAMMA, SIMPLIFY, ClosedForm, Derivation, Step
from derivations.registry import derivation

UNIFORM = "P has r orthonormal rows, uniformly random among such matrices, :math:`0 < r < m`."
x = sp.Symbol("x", positive=True)
a, b = sp.symbols("a b", positive=True)
rank, outputs = sp.symbols("r m", positive=True)
alpha, beta = sp.symbols("alpha beta", positive=True)


def beta_density(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return the density of the Beta law."""
    return x ** (first - 1) * (1 - x) ** (second - 1) * sp.gamma(first + second) / (sp.gamma(first) * sp.gamma(second))


def _moment(order: sp.Expr, first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return a moment of the Beta law from the normalisation of a shifted one."""
    shifted, own = beta_density(first + order, second), beta_density(first, second)
    return sp.powsimp(sp.expand(x**order * own / shifted))


@derivation
def overlap_law() -> Derivation:
    """Derive the Beta law of the share of one direction that a random channel sees."""
    total = sp.Symbol("y", positive=True)
    ratio_density = (
        (x * total) ** (a - 1)
        * sp.exp(-x * total)
        / sp.gamma(a)
        * ((1 - x) * total) ** (b - 1)
        * sp.exp(-(1 - x) * total)
        / sp.gamma(b)
        * total
    )
    sum_density = total ** (a + b - 1) * sp.exp(-total) / sp.gamma(a + b)
    half, rest = rank / 2, (outputs - rank) / 2
    mean, second = (_moment(i, half, rest) for i in map(sp.Integer, (1, 2)))
    fourth, cross = 3 / (outputs * (outputs + 2)), 1 / (outputs * (outputs + 2))

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        def at(r_: int, m_: int) -> sp.Expr:
            return sp.Integral(candidate.subs({rank: r_, outputs: m_}), (x, 0, 1))

        rule = sp.log(candidate).diff(x)
        return (
            Step(
                "Its logarithmic derivative is that of the Beta law.",
                rule,
                (rank / 2 - 1) / x - ((outputs - rank) / 2 - 1) / (1 - x),
                shown=r"\frac{d}{d\kappa} \ln f",
            ),
            *(
                Step(f"It is normalised, for r = {i} and m = {j}.", at(i, j), sp.Integer(1), (EVALUATE,))
                for i, j in ((1, 3), (2, 4), (3, 5), (2, 7))
            ),
            Step(
                "The mean, integrated directly at r = 2, m = 7.",
                sp.Integral(x * candidate.subs({rank: 2, outputs: 7}), (x, 0, 1)),
                sp.Rational(2, 7),
                (EVALUATE,),
            ),
        )

    return Derivation(
        name="overlap_law",
        title="What a random channel sees of one direction",
        statement=(
            r"For a fixed unit direction u the share :math:`\kappa = u^\top P^\top P u` of a random "
            r"channel follows a Beta law with parameters r/2 and (m - r)/2: by rotation "
            "invariance it is the share of r coordinates in the squared norm of a uniformly random "
            "unit vector."
        ),
        assumptions=(UNIFORM,),
        steps=(
            Step(
                "Let the two parts of a squared Gaussian vector be gamma variables with shapes a = r/2 "
                "and b = (m - r)/2; write them as :math:`xy` and :math:`(1-x)y` (Jacobian y). "
                "Their joint density is a Beta density in x times a gamma density in y: the share is "
                "independent of the norm.",
                sp.expand_log(sp.log(ratio_density).subs(1 - x, sp.Symbol("w", positive=True)), force=True).subs(
                    sp.Symbol("w", positive=True), 1 - x
                ),
                sp.expand_log(sp.log(beta_density(a, b)) + sp.log(sum_density), force=True),
                (SIMPLIFY,),
                shown=r"\ln f(x, y)",
            ),
            Step(
                "The mean follows from the normalisation of a shifted law.",
                mean,
                rank / outputs,
                (GAMMA,),
                key=True,
                shown=r"\langle\kappa\rangle",
            ),
            Step(
                "The second moment.",
                second,
                rank * (rank + 2) / (outputs * (outputs + 2)),
                (GAMMA,),
                shown=r"\langle\kappa^2\rangle",
            ),
            Step(
                "The variance.",
                second - mean**2,
                2 * rank * (outputs - rank) / (outputs**2 * (outputs + 2)),
                (GAMMA,),
                key=True,
                shown=r"\mathrm{var}\,\kappa",
            ),
            Step(
                r"The same second moment from the coordinates of a random unit vector, :math:`\langle "
                r"z_i^4\rangle = 3/(m(m+2))` and :math:`\langle z_i^2z_j^2\rangle = 1/(m(m+2))`.",
                rank * fourth + rank * (rank - 1) * cross,
                rank * (rank + 2) / (outputs * (outputs + 2)),
                shown=r"\langle\kappa^2\rangle",
            ),
            Step(
                "The mean slowing of a mode's half time (without weight decay), finite for r > 1.",
                _moment(sp.Rational(-1, 2), half, rest),
                sp.gamma(outputs / 2) * sp.gamma((rank - 1) / 2) / (sp.gamma(rank / 2) * sp.gamma((outputs - 1) / 2)),
                (GAMMA,),
                shown=r"\langle\kappa^{-1/2}\rangle",
            ),
        ),
        closed_form=ClosedForm(r"f(\kappa)", beta_density(half, rest), (x, rank, outputs), conditions),
        sizes="All r < m for the moments; the normalisation is also integrated directly at the sizes named.",
        theory=("overlap_distribution",),
        test="tests/test_derivations_vs_theory.py::test_overlap_distribution",
        citations=("collins2005", "absil2006"),
    )
