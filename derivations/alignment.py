"""Mirror alignment, and what is conserved when the mirror is off by a constant or the feedback is fixed."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import Flow, all_sizes, entries, explicit, rate
from derivations.core import EXPAND, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    EQUAL_RATES,
    GENERIC,
    MATHEMATICAL_SHAPES,
    SIZES,
    SIZES_TEXT,
    W1,
    W2,
    WHITENED,
    B,
    D,
    E,
    P,
    Q,
    fixed_feedback_flow,
    k,
    lam,
    low_dimensional_flow,
    m,
    n,
    r,
    t,
)


def invariant_form(name: str, expression: sp.MatrixExpr, flow: Flow) -> ClosedForm:
    """Return a conserved matrix as an explicit expression whose derivative along the explicit flow must vanish."""
    letters = sorted({*expression.free_symbols} - {n, k, m, r}, key=str)
    symbols = tuple(entry for letter in letters for entry in entries(letter, *(SIZES[size] for size in letter.shape)))
    rates = {
        entry: value
        for letter, velocity in flow.items()
        for entry, value in zip(
            entries(letter, *(SIZES[s] for s in letter.shape)), explicit(velocity, SIZES), strict=True
        )
    }

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        zero = sp.zeros(*candidate.shape)
        velocity = sum((candidate.diff(entry) * value for entry, value in rates.items()), zero)
        still = "Its entries, differentiated one by one along the explicit flow, do not change."
        same = "The explicit entries, subtracted from those of the matrix formula, leave nothing."
        return (
            Step(still, velocity, zero, (EXPAND,), shown=rf"\frac{{d}}{{dt}} {name}"),
            Step(same, explicit(expression, SIZES) - candidate, zero, (EXPAND,), shown=rf"\Delta {name}"),
        )

    return ClosedForm(name, explicit(expression, SIZES), symbols, conditions, sp.latex(expression))


@derivation
def mirror_alignment() -> Derivation:
    """Derive that the misalignment of a learned mirror decays as exp(-lambda t)."""
    both = (all_sizes(), GENERIC)
    flow, mismatch = low_dimensional_flow(), Q - W2.T * P.T
    eta = sp.Symbol("eta", positive=True)
    stepped = {matrix: matrix + eta * velocity for matrix, velocity in flow.items()}
    after = stepped[Q] - stepped[W2].T * P.T
    start = sp.Symbol("D_0", real=True)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It solves the equation entry by entry.",
                candidate.diff(t),
                -lam * candidate,
                shown=r"\dot D(t)",
            ),
            Step("It starts at the given mismatch.", candidate.subs(t, 0), start, shown="D(0)"),
        )

    return Derivation(
        name="mirror_alignment",
        title="Mirror alignment",
        statement=(
            r"The mismatch :math:`D = Q - W_2^\top P^\top` between a learned mirror and the "
            r"transported readout decays at the rate "
            "of the weight decay, whatever the error, the weights and the rank; without weight "
            "decay it stays as it is. An aligned mirror stays aligned."
        ),
        assumptions=(
            WHITENED,
            "P is fixed.",
            EQUAL_RATES,
            "Updates linear in the gradient (gradient descent, momentum); Adam is not, since "
            "Adam(P G) differs from P Adam(G).",
        ),
        steps=(
            rate(
                "The error's contributions cancel, because the mirror's gradient is the readout's, seen through P.",
                mismatch,
                flow,
                -lam * mismatch,
                both,
                key=True,
            ),
            Step(
                r"The same holds for finite steps of gradient descent with learning rate :math:`\eta`, "
                r"not only for the flow.",
                after,
                (1 - eta * lam) * mismatch,
                both,
                shown=r"Q_{+} - W_{2+}^{T} P^{T}",
            ),
            rate(
                "Without weight decay the mismatch is constant.",
                mismatch,
                low_dimensional_flow(sp.Integer(0)),
                sp.ZeroMatrix(k, r),
                both,
            ),
        ),
        closed_form=ClosedForm("D(t)", start * sp.exp(-lam * t), (t, start, lam), conditions),
        sizes=SIZES_TEXT + " " + MATHEMATICAL_SHAPES,
        theory=("mirror_error",),
        test="tests/test_derivations_vs_theory.py::test_mirror_error",
        citations=("kolenpollack1994", "akrout2019", "hanut2025"),
    )


@derivation
def constant_mismatch_invariant() -> Derivation:
    """Derive the matrix that is conserved without weight decay when the mirror is off by a constant D."""
    flow = {W1: (W2.T * P.T + D) * P * E, W2: E * W1.T}
    invariant = W1 * W1.T - W2.T * P.T * P * W2 - D * P * W2 - W2.T * P.T * D.T
    return Derivation(
        name="constant_mismatch_invariant",
        title="Conserved quantity with a constant mismatch",
        statement=r"Without weight decay the mismatch :math:`D = Q - W_2^\top P^\top` is constant, and so "
        r"is a symmetric matrix of the hidden layer.",
        assumptions=(
            WHITENED,
            r"P is fixed, :math:`\lambda = 0`, so D is constant (see :doc:`mirror_alignment`).",
            EQUAL_RATES,
        ),
        steps=(
            rate(
                r"Write :math:`Q = W_2^\top P^\top + D`; every term cancels with the transpose of another.",
                invariant,
                flow,
                sp.ZeroMatrix(k, k),
                (all_sizes(), GENERIC),
                key=True,
            ),
        ),
        closed_form=invariant_form("I_D", invariant, flow),
        sizes=SIZES_TEXT + " " + MATHEMATICAL_SHAPES,
        theory=("conserved",),
        test="tests/test_derivations_vs_theory.py::test_conserved_with_learned_mirror",
        citations=("hanut2025",),
    )


@derivation
def fixed_feedback_invariant() -> Derivation:
    """Derive the matrix that feedback alignment conserves without weight decay."""
    invariant = W1 * W1.T - B * W2 - W2.T * B.T
    trace = sp.trace
    return Derivation(
        name="fixed_feedback_invariant",
        title="Conserved quantity of feedback alignment",
        statement=(
            "With a constant feedback matrix :math:`B` of any rank, the matrix below is conserved "
            "without weight decay. From small "
            r"weights it is zero, so :math:`BW_2 + (BW_2)^\top = W_1W_1^\top` stays positive "
            r"semi-definite: the readout "
            r"turns towards :math:`B^\top`."
        ),
        assumptions=(WHITENED, "B is constant.", "Equal learning rates of the two layers."),
        steps=(
            rate(
                "Both products have the same rate.",
                invariant,
                fixed_feedback_flow(sp.Integer(0)),
                sp.ZeroMatrix(k, k),
                (all_sizes(), GENERIC),
                key=True,
            ),
            rate(
                "With weight decay the two parts decay at different rates, so nothing of this form is conserved.",
                invariant,
                fixed_feedback_flow(),
                -2 * lam * W1 * W1.T + lam * (B * W2 + W2.T * B.T),
                (all_sizes(), GENERIC),
            ),
            Step(
                "At a vanishing conserved matrix the overlap of readout and feedback is positive.",
                sp.ImmutableMatrix([[2 * trace(explicit(B * W2, SIZES)) + trace(explicit(invariant, SIZES))]]),
                sp.ImmutableMatrix([[trace(explicit(W1 * W1.T, SIZES))]]),
                (EXPAND,),
                shown=r"2 \operatorname{tr}(B W_2) + \operatorname{tr}(W_1 W_1^T - B W_2 - W_2^T B^T)",
            ),
        ),
        closed_form=invariant_form("I_B", invariant, fixed_feedback_flow(sp.Integer(0))),
        sizes=SIZES_TEXT + " " + MATHEMATICAL_SHAPES,
        theory=("conserved",),
        test="tests/test_derivations_vs_theory.py::test_conserved_with_fixed_feedback",
        citations=("lillicrap2016", "refinetti2021"),
    )
