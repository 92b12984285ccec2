"""What a fixed channel does: backpropagation on an effective teacher, and a readout that only follows."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, along, at_sizes, entries, explicit, rate
from derivations.alignment import invariant_form
from derivations.core import EXPAND, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    ALIGNED,
    EQUAL_RATES,
    GENERIC,
    MATHEMATICAL_SHAPES,
    SIZES,
    SIZES_TEXT,
    W1,
    W2,
    WHITENED,
    A,
    P,
    aligned_flow,
    k,
    lam,
    m,
    r,
)

BOTH = (all_sizes(), GENERIC)


def _gradient(scalar: sp.Expr, matrix: sp.ImmutableMatrix) -> sp.ImmutableMatrix:
    """Return the derivatives of a scalar by the entries of a matrix."""
    return sp.ImmutableMatrix(*matrix.shape, [sp.diff(scalar, entry) for entry in matrix])


@derivation
def effective_teacher() -> Derivation:
    """Derive that the visible part of the network follows backpropagation on the teacher PA."""
    visible, error = P * W2, A - W2 * W1
    flow = {W1: W2.T * P.T * P * error - lam * W1, W2: error * W1.T - lam * W2}
    x, y, seen, teacher = (explicit(part, SIZES) for part in (W1, W2, P * error, error))
    return Derivation(
        name="effective_teacher",
        title="The channel acts as an effective teacher",
        statement=(
            "With an aligned mirror, :math:`W_1` descends the loss seen through the channel while "
            ":math:`W_2` descends the full "
            "loss; the pair :math:`(W_1, PW_2)` follows exactly backpropagation on the effective "
            "teacher :math:`PA`. Elementary "
            "once seen: multiply the readout's equation by P."
        ),
        assumptions=(WHITENED, ALIGNED, EQUAL_RATES),
        steps=(
            rate(
                "The hidden layer follows the backpropagated error of the network :math:`(W_1, PW_2)` "
                "with teacher :math:`PA`.",
                W1,
                flow,
                visible.T * (P * A - visible * W1) - lam * W1,
                BOTH,
                key=True,
            ),
            rate(
                "So does its readout.",
                visible,
                flow,
                (P * A - visible * W1) * W1.T - lam * visible,
                BOTH,
                key=True,
            ),
            Step(
                "The hidden layer's update is minus the gradient of the loss seen through the channel, "
                r":math:`\frac12\mathrm{tr}\,E^\top P^\top P E` up to a constant.",
                -_gradient(sp.trace(seen.T * seen) / 2, x),
                explicit(W2.T * P.T * P * error, SIZES),
                (EXPAND,),
                shown=r"-\frac{\partial}{\partial W_1} \tfrac{1}{2} \operatorname{tr} E^T P^T P E",
                shown_rhs="W_2^T P^T P E",
            ),
            Step(
                "The readout's update is minus the gradient of the full loss.",
                -_gradient(sp.trace(teacher.T * teacher) / 2, y),
                explicit(error * W1.T, SIZES),
                (EXPAND,),
                shown=r"-\frac{\partial}{\partial W_2} \tfrac{1}{2} \operatorname{tr} E^T E",
                shown_rhs="E W_1^T",
            ),
        ),
        sizes=SIZES_TEXT + " The gradients are taken at that explicit size only. " + MATHEMATICAL_SHAPES,
        theory=("exact_map",),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("hanut2025", "saxe2013"),
    )


@derivation
def m_balancedness() -> Derivation:
    """Derive that M-balancedness is conserved, and decays as exp(-2 lambda t) with weight decay."""
    imbalance = W1 * W1.T - W2.T * P.T * P * W2
    return Derivation(
        name="m_balancedness",
        title="M-balancedness",
        statement=(
            "With an aligned mirror the imbalance between the hidden layer and the visible readout "
            "is conserved without weight "
            r"decay and decays as :math:`e^{-2\lambda t}` with it. For :math:`M = P^\top P = I` "
            r"this is the balancedness of backpropagation."
        ),
        assumptions=(WHITENED, ALIGNED, EQUAL_RATES),
        steps=(
            rate(
                "The error's contributions cancel.",
                imbalance,
                aligned_flow(),
                -2 * lam * imbalance,
                BOTH,
                key=True,
            ),
            rate(
                "Without weight decay nothing is left.",
                imbalance,
                aligned_flow(sp.Integer(0)),
                sp.ZeroMatrix(k, k),
                BOTH,
                key=True,
            ),
        ),
        closed_form=invariant_form("I_M", imbalance, aligned_flow(sp.Integer(0))),
        sizes=SIZES_TEXT + " " + MATHEMATICAL_SHAPES,
        theory=("conserved", "m_balanced_weights"),
        test="tests/test_derivations_vs_theory.py::test_conserved_when_aligned",
        citations=("fukumizu1998", "saxe2013", "domine2024"),
    )


@derivation
def passive_readout() -> Derivation:
    """Derive that the part of the readout the channel cannot see never influences the hidden layer."""
    R, Y = sp.MatrixSymbol("R", m, m), sp.MatrixSymbol("Y", m, k)
    flow = {W1: W2.T * P.T * P * (A - W2 * W1) - lam * W1, W2: (A - W2 * W1) * W1.T - lam * W2}
    shifted = W2 + R * Y
    blind = all_sizes((P * R, sp.ZeroMatrix(r, m)), given=":math:`PR = 0`")
    p = entries(P, 1, 3)
    normal = sp.Matrix([p[1], -p[0], 0]) * sp.Matrix([sp.symbols("q_1:4", real=True)])
    example = at_sizes(SIZES, {R: normal})
    return Derivation(
        name="passive_readout",
        title="The passive readout",
        statement=(
            "Let R map onto output directions that the channel does not see, :math:`PR = 0`. "
            "Adding :math:`RY` to the readout "
            "changes neither the hidden layer's velocity nor that of the visible readout, and the "
            "unseen part regresses "
            "the teacher on whatever features the hidden layer has."
        ),
        assumptions=(
            WHITENED,
            ALIGNED,
            EQUAL_RATES,
            ":math:`PR = 0`; for the last equation R is applied from the left, any R will do.",
        ),
        steps=(
            Step(
                "The hidden layer's velocity is blind to :math:`RY`.",
                shifted.T * P.T * P * (A - shifted * W1) - lam * W1,
                flow[W1],
                (blind, example),
                key=True,
                shown=r"\left. \dot W_1 \right|_{W_2 + R Y}",
            ),
            Step(
                "So is the velocity of the visible readout.",
                P * ((A - shifted * W1) * W1.T - lam * shifted),
                P * flow[W2],
                (blind, example),
                shown=r"\left. P \dot W_2 \right|_{W_2 + R Y}",
            ),
            Step(
                "The unseen part is a linear regression of the unseen teacher on the features :math:`W_1 x`.",
                along(R * W2, flow),
                (R * A - R * W2 * W1) * W1.T - lam * R * W2,
                BOTH,
                key=True,
                shown=r"\frac{d}{dt} \left( R W_2 \right)",
            ),
        ),
        sizes=SIZES_TEXT
        + " There R is any outer product of a vector orthogonal to P's row with an arbitrary one. "
        + MATHEMATICAL_SHAPES,
        theory=("exact_map", "readout_only_map"),
        test="tests/test_derivations_vs_theory.py::test_exact_map_at_explicit_size",
        citations=("hanut2025",),
    )
