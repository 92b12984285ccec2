"""Feedback alignment of whole networks: stationary states, and how the forward weights come to align."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, at_sizes, entries
from derivations.core import EVALUATE, EXPAND, RATIONAL, SIMPLIFY, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    GENERIC,
    MATHEMATICAL_SHAPES,
    SIZES_TEXT,
    WHITENED,
    A,
    B,
    E,
    P,
    k,
    lam,
    m,
    n,
    t,
)


@derivation
def feedback_alignment_stationary() -> Derivation:
    """Derive where feedback alignment ends, with and without weight decay."""
    W1, W2 = B * E / lam, E * E.T * B.T / lam**2
    v, y2, seen = sp.MatrixSymbol("v", n, 1), sp.Symbol("y_2", positive=True), B * E
    squared = all_sizes((seen.T * seen * v, y2 * v), given=r":math:`Y^\top Y v = y^2 v`")
    e, feedback = sp.symbols("e b", positive=True)
    teacher = e + feedback**2 * e**3 / lam**3
    strength = sp.Symbol("s", positive=True)
    guess = lam * strength ** sp.Rational(1, 3) / feedback ** sp.Rational(2, 3)
    x, y = sp.symbols("x y", real=True)
    p = entries(P, 1, 2)
    hidden = sp.Symbol("w", real=True) * sp.Matrix([[-y, x]])
    error = sp.Matrix([[-p[1] * x, -p[1] * y], [p[0] * x, p[0] * y]])

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        readout = feedback * e**2 / lam**2
        return (
            Step(
                r"Stationarity of one mode, with :math:`a = be/\lambda` and :math:`c = ea/\lambda`: the "
                r"strength is what is learned and the error.",
                candidate,
                e + readout * feedback * e / lam,
                (SIMPLIFY,),
                shown="s(e)",
                shown_rhs="e + ca",
            ),
            Step(
                "The readout's stationarity.",
                e * (feedback * e / lam) - lam * readout,
                sp.Integer(0),
                (SIMPLIFY,),
                shown=r"\dot c",
            ),
        )

    return Derivation(
        name="feedback_alignment_stationary",
        title="Stationary states of feedback alignment",
        statement=(
            "Without weight decay a feedback of full column rank leaves no error; a channel "
            ":math:`B = QP` of rank r < m admits a continuum of stationary points with error. "
            r"With weight decay the stationary points are the solutions of a cubic matrix equation; "
            r"when :math:`B^\top B = b^2 I` each singular value of the task keeps an error :math:`e "
            r"> 0`, "
            "without any threshold: unlike with a learned mirror, weak modes are never lost altogether."
        ),
        assumptions=(WHITENED, "B is constant.", "Equal weight decay on both layers."),
        steps=(
            Step(
                r"Without decay, at B of full column rank: the error vanishes, since :math:`B^\top B` "
                r"is invertible.",
                ((entries(B, 2, 2).T * entries(B, 2, 2)).inv() * entries(B, 2, 2).T)
                * (entries(B, 2, 2) * entries(E, 2, 2)),
                entries(E, 2, 2),
                (RATIONAL,),
                shown=r"(B^T B)^{-1} B^T (B E)",
            ),
            Step(
                "With r = 1 < m = 2: an error that P does not see stops the hidden layer.",
                sp.ImmutableMatrix(sp.Symbol("q", real=True) * p * error),
                sp.zeros(1, 2),
                (EXPAND,),
                key=True,
                shown="Q P E",
            ),
            Step(
                "It stops the readout too, once the hidden layer does not respond to the inputs on "
                "which the error depends.",
                sp.ImmutableMatrix(error * hidden.T),
                sp.zeros(2, 1),
                (EXPAND,),
                shown="E W_1^T",
            ),
            Step(
                r"With decay the hidden layer is :math:`W_1 = BE/\lambda`, so its rank is at most that "
                r"of the feedback, and the readout is stationary at :math:`W_2 = EW_1^\top/\lambda`.",
                E * W1.T,
                lam * W2,
                (all_sizes(), GENERIC),
                shown="E W_1^T",
            ),
            Step(
                "What remains is one equation for the error.",
                E + W2 * W1,
                E + E * E.T * B.T * B * E / lam**3,
                (all_sizes(), GENERIC),
                key=True,
                shown="A = E + W_2 W_1",
            ),
            Step(
                r"In what the feedback sees, :math:`Y = BE`, this is a cubic for the singular values: those of BA are "
                r":math:`y_i + y_i^3/\lambda^3`, with the singular vectors of Y.",
                B * (E + W2 * W1),
                seen + seen * seen.T * seen / lam**3,
                (all_sizes(), GENERIC),
                key=True,
                shown="B A",
                shown_rhs=r"Y + Y Y^T Y / \lambda^3",
            ),
            Step(
                r"Each right singular vector v of Y is learned in part: its share is :math:`y^2/(\lambda^3 + y^2)`.",
                (1 + y2 / lam**3) * W2 * W1 * v,
                y2 / lam**3 * (E + W2 * W1) * v,
                (squared,),
                key=True,
                shown=r"(1 + y^2/\lambda^3)\, W_2 W_1 v",
                shown_rhs=r"(y^2/\lambda^3)\, A v",
            ),
            Step(
                r"For :math:`B^\top B = b^2 I` it decouples: a mode of strength s keeps an error e with "
                r":math:`s = e + b^2e^3/\lambda^3`, which grows strictly with e (one solution).",
                teacher.diff(e),
                1 + 3 * feedback**2 * e**2 / lam**3,
                (SIMPLIFY,),
                shown=r"\frac{ds}{de}",
            ),
            Step(
                r"For weak decay the error is :math:`e \approx \lambda (s/b^2)^{1/3}`, proportional to "
                r"the decay.",
                sp.Limit(teacher.subs(e, guess), lam, 0, "+"),
                strength,
                (EVALUATE,),
                key=True,
                shown=r"\lim_{\lambda \to 0^+} s(e) \big|_{e = \lambda (s/b^2)^{1/3}}",
            ),
            Step(
                r"A weak mode (small s) keeps almost all of its error but learns a share :math:`b^2 "
                r"e^3/\lambda^3 > 0`: no threshold.",
                sp.Limit((teacher - e) / teacher**3, e, 0, "+"),
                feedback**2 / lam**3,
                (EVALUATE,),
                shown=r"\lim_{s \to 0^+} (s - e) / s^3",
            ),
        ),
        closed_form=ClosedForm("s(e)", teacher, (e, feedback, lam), conditions),
        sizes=SIZES_TEXT + " The examples are at the explicit sizes named. " + MATHEMATICAL_SHAPES,
        theory=("feedback_alignment_end_point",),
        test="tests/test_derivations_vs_theory.py::test_feedback_alignment_end_point",
        citations=("lillicrap2016", "hanut2025"),
    )


@derivation
def feedback_alignment_onset() -> Derivation:
    """Derive the first growth of the weights under feedback alignment from zero: the readout aligns with B^T."""
    feedback, teacher = entries(B, 2, 2), entries(A, 2, 2)
    w1, w2 = t * feedback * teacher, t**2 / 2 * teacher * teacher.T * feedback.T
    error = teacher - w2 * w1

    def up_to(value: sp.ImmutableMatrix, power: int) -> sp.ImmutableMatrix:
        orders = range(power + 1)
        return value.applyfunc(lambda entry: sum(sp.expand(entry).coeff(t, order) * t**order for order in orders))

    late = (B * A * A.T * B.T, A * A.T * B.T)
    overlap = sp.trace(feedback * teacher * teacher.T * feedback.T)
    seen = feedback * teacher
    return Derivation(
        name="feedback_alignment_onset",
        title="How feedback alignment begins",
        statement=(
            r"From zero weights the hidden layer first grows along :math:`BA`, and the readout then "
            r"along :math:`AA^\top B^\top`: its overlap with the feedback is positive, "
            r"so that feedback through B comes to point where :math:`W_2^\top` would."
        ),
        assumptions=(
            WHITENED,
            r"B is constant; :math:`\lambda = 0`; zero weights at t = 0. First orders in t.",
        ),
        steps=(
            Step(
                r"With :math:`W_1 = tBA` and :math:`W_2 = \frac{t^2}{2}AA^\top B^\top` the hidden "
                r"layer's equation holds but for terms of order :math:`t^3`.",
                up_to(sp.ImmutableMatrix(w1.diff(t) - feedback * error), 2),
                sp.zeros(2, 2),
                (EXPAND,),
                shown=r"\dot W_1 - B E + O(t^3)",
            ),
            Step(
                "The readout's equation holds to the same relative order.",
                up_to(sp.ImmutableMatrix(w2.diff(t) - error * w1.T), 3),
                sp.zeros(2, 2),
                (EXPAND,),
                shown=r"\dot W_2 - E W_1^T + O(t^4)",
            ),
            Step(
                "The overlap with the feedback is a sum of squares.",
                overlap,
                sum(entry**2 for entry in seen),
                (EXPAND,),
                key=True,
                shown=r"\operatorname{tr} (B A A^T B^T)",
            ),
            Step(
                r"This agrees with the conserved quantity: :math:`W_1W_1^\top = BW_2 + (BW_2)^\top` at "
                r"order :math:`t^2`.",
                late[0],
                (B * late[1] + late[1].T * B.T) / 2,
                (all_sizes(), at_sizes({k: 2, m: 2, n: 2})),
                shown=r"\tfrac{1}{t^2} W_1 W_1^T",
            ),
        ),
        sizes="The series at the explicit size n = m = k = 2; the last step for all sizes. " + MATHEMATICAL_SHAPES,
        test="tests/test_derivations.py::test_every_derivation_verifies",
        citations=("lillicrap2016", "refinetti2021"),
    )
