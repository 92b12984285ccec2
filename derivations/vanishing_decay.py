"""The limit of vanishing weight decay after infinite time."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import entries, unit
from derivations.core import EVALUATE, RATIONAL, SIMPLIFY, ClosedForm, Derivation, Step
from derivations.end_point import CHANNEL, TEACHER, rank_one_map
from derivations.registry import derivation
from derivations.setting import ALIGNED, WHITENED, P, lam


@derivation
def vanishing_decay() -> Derivation:
    """Derive the limit t to infinity first, then weight decay to zero."""
    sigma = sp.Symbol("sigma", positive=True)
    s1, gap, tau = (
        sp.Symbol("s_2", positive=True),
        sp.Symbol("delta", nonnegative=True),
        sp.Symbol("tau", real=True),
    )
    row = CHANNEL * TEACHER
    form = sp.ImmutableMatrix(TEACHER * row.T * row / (row * row.T)[0, 0])
    wide = entries(P, 2, 3) * sp.Matrix(3, 2, sp.symbols("a_1:7", real=True))
    projector = wide.T * (wide * wide.T).inv() * wide
    u, v = unit(sp.Symbol("tau_1", real=True)), unit(tau)
    single = sp.Symbol("s", positive=True) * u * v.T
    seen = CHANNEL * single
    strengths = sp.diag(s1 + gap, s1)
    left = strengths * (sp.eye(2) - v * v.T)

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        return (
            Step(
                "It is the end point for one channel, continued to vanishing decay.",
                rank_one_map(sp.Integer(0)),
                candidate,
                (SIMPLIFY,),
                shown=r"\lim_{\lambda \to 0^+} W_2W_1(\infty)",
                shown_rhs=r"A v v^T",
            ),
            Step(
                "The channel sees no error any more.",
                CHANNEL * (TEACHER - candidate),
                sp.zeros(1, 2),
                (RATIONAL,),
                key=True,
                shown="P E",
            ),
        )

    return Derivation(
        name="vanishing_decay",
        title="The limit of vanishing weight decay",
        statement=(
            r"For :math:`t\to\infty` first and :math:`\lambda\to 0^+` then, the network learns "
            r":math:`A V_rV_r^\top`, with :math:`V_r` an orthonormal basis of the rows of PA. "
            r"A random fixed channel therefore solves the task once r is at least the rank d of the "
            r"task, and leaves at least the best rank-r error :math:`\sum_{i>r} s_i^2` below. "
            r"At :math:`\lambda = 0` with a small start this is only a plateau: a wide hidden layer "
            r"then slowly reaches E = 0 through the readout."
        ),
        assumptions=(
            WHITENED,
            ALIGNED,
            r"Enough hidden units, :math:`k \geq \mathrm{rank}(PA)`; the order of the limits as stated.",
        ),
        steps=(
            Step(
                "Each learned direction's factor tends to one.",
                sp.Limit(1 - lam / sigma, lam, 0, "+"),
                sp.Integer(1),
                (EVALUATE,),
            ),
            Step(
                "With as many channels as task dimensions (r = d = n = 2, m = 3, generic P and A) the "
                "rows of PA span the input: everything is learned.",
                projector,
                sp.eye(2),
                (RATIONAL,),
                key=True,
                shown="V_r V_r^T",
            ),
            Step(
                r"One channel and a task of rank one (r = d = 1, m = n = 2): the same, for any P with "
                r":math:`PA \neq 0`.",
                single * seen.T * seen,
                single * (seen * seen.T)[0, 0],
                (RATIONAL,),
                shown=r"A V_r V_r^T \lVert PA \rVert^2",
                shown_rhs=r"A \lVert PA \rVert^2",
            ),
            Step(
                r"One channel and a task of rank two with strengths :math:`s_2 + \delta \geq s_2`, "
                r"whose visible direction has the component "
                r":math:`2\tau/(1+\tau^2)` off the strongest: the error is the best rank-one error plus "
                r"what is not negative.",
                sp.trace(left.T * left),
                s1**2 + (2 * s1 * gap + gap**2) * (2 * tau / (1 + tau**2)) ** 2,
                (RATIONAL,),
                key=True,
                shown=r"\lVert A (I - V_r V_r^T) \rVert^2",
            ),
        ),
        closed_form=ClosedForm(
            "A V_r V_r^T",
            form,
            (*TEACHER, *CHANNEL),
            conditions,
            r"A \frac{A^T P^T P A}{P A A^T P^T} \quad (r = 1, m = n = 2)",
        ),
        sizes="Explicit sizes as named in the steps. In words, for all sizes: the rows of PA lie in "
        "the row space of A and span it when rank(PA) = rank(A); the "
        r"bound for r < d is the Eckart-Young theorem, since :math:`AV_rV_r^\top` has rank at most r.",
        theory=("end_point",),
        test="tests/test_derivations_vs_theory.py::test_end_point_without_decay",
        citations=("hanut2025",),
    )
