"""How well a random channel carries errors of many dimensions: mean and variance of the squared cosine."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, RATIONAL, ClosedForm, Derivation, Step
from derivations.overlap_law import UNIFORM
from derivations.registry import derivation

rank, outputs, dimension = sp.symbols("r m D", positive=True)
trace, square = sp.symbols("t q", positive=True)


@derivation
def carried_alignment() -> Derivation:
    """Derive the moments of the share of errors of any covariance that a random channel carries."""
    off = rank * (outputs - rank) / (outputs * (outputs - 1) * (outputs + 2))
    paired = (rank**2 - 2 * off * outputs) / outputs**2
    mean = rank * trace / outputs
    variance = paired * trace**2 + 2 * off * square - mean**2
    form = 2 * off * (1 / dimension - 1 / outputs)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        angle = sp.Symbol("theta", real=True)
        first, second = sp.symbols("c_1 c_2", positive=True)
        share = (first * sp.cos(angle) ** 2 + second * sp.sin(angle) ** 2) / (first + second)

        def over_angles(expr: sp.Expr) -> sp.Expr:
            return sp.integrate(sp.expand(expr), (angle, 0, 2 * sp.pi)) / (2 * sp.pi)

        return (
            Step(
                "It is the variance above over the square of the trace.",
                candidate.subs(dimension, trace**2 / square),
                variance / trace**2,
                (RATIONAL,),
                shown=r"\mathrm{var}\cos^2",
            ),
            Step(
                "Errors in one direction, D = 1: the variance of the Beta law.",
                candidate.subs(dimension, 1),
                2 * rank * (outputs - rank) / (outputs**2 * (outputs + 2)),
                (RATIONAL,),
            ),
            Step("Errors alike in all directions, D = m.", candidate.subs(dimension, outputs), sp.Integer(0)),
            Step(
                "What a channel carries and what it leaves add up to one: r and m - r scatter alike.",
                candidate.subs(rank, outputs - rank),
                candidate,
                (RATIONAL,),
            ),
            Step(
                "One row in the plane at a uniform angle, :math:`P = (\\cos\\theta, \\sin\\theta)`, integrated.",
                over_angles(share**2) - over_angles(share) ** 2,
                candidate.subs({rank: 1, outputs: 2, dimension: (first + second) ** 2 / (first**2 + second**2)}),
                (EVALUATE,),
                shown=r"\mathrm{var}\cos^2",
            ),
        )

    return Derivation(
        name="carried_alignment",
        title="How well a random channel carries errors of many dimensions",
        statement=(
            r"Errors of covariance C are carried as :math:`M\delta`, :math:`M = P^\top P`. Over a batch the squared "
            r"cosine between the two is :math:`\operatorname{tr} MC/\operatorname{tr} C`: its mean is r/m whatever "
            r"the errors are, its variance depends on them through the dimension :math:`D = (\operatorname{tr} C)^2/"
            r"\operatorname{tr} C^2` alone."
        ),
        assumptions=(UNIFORM,),
        steps=(
            Step(
                r"By rotation invariance :math:`\langle M_{ij}M_{kl}\rangle = a\,\delta_{ij}\delta_{kl} + "
                r"b\,(\delta_{ik}\delta_{jl} + \delta_{il}\delta_{jk})`. Two contractions fix a and b: "
                "the square of the trace,",
                paired * outputs**2 + 2 * off * outputs,
                rank**2,
                (RATIONAL,),
                shown=r"a m^2 + 2 b m",
            ),
            Step(
                "and the trace of the square, which is that of M.",
                paired * outputs + off * (outputs**2 + outputs),
                rank,
                (RATIONAL,),
                shown=r"a m + b\,(m^2 + m)",
            ),
            Step(
                r"The variance of :math:`\operatorname{tr} MC` with :math:`t = \operatorname{tr} C` and "
                r":math:`q = \operatorname{tr} C^2`.",
                variance,
                2 * off * (square - trace**2 / outputs),
                (RATIONAL,),
                key=True,
                shown=r"\mathrm{var}\operatorname{tr} MC",
            ),
        ),
        closed_form=ClosedForm(r"\mathrm{var}\cos^2", form, (rank, outputs, dimension), conditions),
        sizes="All r < m; the plane is also integrated directly.",
        theory=("carried_alignment",),
        test="tests/test_derivations_vs_theory.py::test_carried_alignment",
        citations=("absil2006",),
    )
