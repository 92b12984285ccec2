"""Where learning with a fixed channel and weight decay ends."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, at_sizes, entries, unit
from derivations.core import SIMPLIFY, ClosedForm, Derivation, Step, rational
from derivations.registry import derivation
from derivations.setting import ALIGNED, EQUAL_RATES, MATHEMATICAL_SHAPES, WHITENED, A, P, k, lam, m, n, r

l = sp.Symbol("l", integer=True, positive=True)
V, G = sp.MatrixSymbol("V", n, l), sp.MatrixSymbol("G", k, l)
S, R = sp.MatrixSymbol("S", l, l), sp.MatrixSymbol("R", l, l)
SELECTED = (
    r"V holds l right singular vectors of PA with singular values :math:`\Sigma = S^2 + "
    r"\lambda I`, S diagonal and :math:`R = \Sigma^{-1}`; "
    r"G has orthonormal columns, :math:`G^\top G = I` (so :math:`l \leq k`)."
)


TEACHER = sp.ImmutableMatrix(2, 2, sp.symbols("a_1:5", real=True))
CHANNEL = sp.ImmutableMatrix([sp.symbols("p_1:3", real=True)])


def rank_one_map(decay: sp.Expr) -> sp.ImmutableMatrix:
    """Return formula (3) for one channel, two inputs and two outputs."""
    row = CHANNEL * TEACHER
    sigma = sp.sqrt((row * row.T)[0, 0])
    return sp.ImmutableMatrix(TEACHER * row.T * row / sigma**2 * sp.Max(0, 1 - decay / sigma))


def _relations() -> tuple[tuple[sp.MatrixExpr, sp.MatrixExpr], ...]:
    """Return what V, G, S and R obey, as replacements."""
    one, square = sp.Identity(l), S * S + lam * sp.Identity(l)
    return (
        (V.T * V, one),
        (G.T * G, one),
        (A.T * P.T * P * A * V, V * square * square),
        (R * S, S * R),
        (S * S * R, one - lam * R),
        (S * R * S, one - lam * R),
    )


def _example() -> tuple[dict, dict]:
    """Return sizes and generic values with one learned and one unlearned mode: n = m = k = r = 2."""
    q, other = sp.symbols("q sigma_2", positive=True)
    p = entries(P, 2, 2)
    turn, mix = unit(sp.Symbol("tau_1", real=True)), unit(sp.Symbol("tau_2", real=True))
    right, left = (sp.Matrix([[x[0], -x[1]], [x[1], x[0]]]) for x in (turn, mix))
    teacher = p.adjugate() / p.det() * left * sp.diag(q**2 + lam, other) * right.T
    values = {
        P: p,
        A: teacher,
        V: right[:, 0],
        G: unit(sp.Symbol("tau_3", real=True)),
        S: sp.Matrix([[q]]),
        R: sp.Matrix([[1 / (q**2 + lam)]]),
    }
    return {n: 2, m: 2, k: 2, r: 2, l: 1}, values


@derivation
def end_point() -> Derivation:
    """Derive the stationary points with weight decay, and the map (3) that they implement."""
    sizes, values = _example()
    both = (
        all_sizes(*_relations(), symmetric=(S, R), given="the stated properties of V, G, S and R"),
        at_sizes(sizes, values, finish=rational),
    )
    w1, w2 = G * S * V.T, A * V * R * S * G.T
    error, left = A - w2 * w1, sp.Identity(n) - V * V.T
    teacher, channel, row = TEACHER, CHANNEL, CHANNEL * TEACHER
    sigma, form = sp.sqrt((row * row.T)[0, 0]), rank_one_map(lam)

    def conditions(candidate: sp.ImmutableMatrix) -> tuple[Step, ...]:
        excess = sp.Symbol("epsilon", positive=True)
        decay = sigma / (1 + excess)
        learned, forgotten = candidate.subs(lam, decay), candidate.subs(lam, sigma * (1 + excess))
        hidden = sp.sqrt(sigma - decay) * row / sigma
        readout = teacher * row.T / sigma * sp.sqrt(sigma - decay) / sigma
        residual = teacher - readout * hidden
        return (
            Step(
                r"Above threshold, :math:`\lambda = \sigma / (1 + \epsilon)`, the map is that of a "
                r"hidden unit with :math:`W_1 = \sqrt{\sigma - \lambda}\, v^\top`.",
                learned,
                readout * hidden,
                (SIMPLIFY,),
                shown="W_2 W_1",
                shown_rhs=r"A v v^T (1 - \lambda/\sigma)",
            ),
            Step(
                "That unit is stationary.",
                (channel * readout)[0, 0] * channel * residual - decay * hidden,
                sp.zeros(1, 2),
                (SIMPLIFY,),
                shown=r"\dot W_1",
            ),
            Step(
                "So is its readout.",
                residual * hidden.T - decay * readout,
                sp.zeros(2, 1),
                (SIMPLIFY,),
                shown=r"\dot W_2",
            ),
            Step(
                r"Below threshold, :math:`\lambda = \sigma (1 + \epsilon)`, nothing is learned.",
                forgotten,
                sp.zeros(2, 2),
                (SIMPLIFY,),
                shown="W_2 W_1",
            ),
        )

    return Derivation(
        name="end_point",
        title="End point with weight decay",
        statement=(
            r"The stationary points with an aligned mirror select singular directions "
            r":math:`\sigma_i, v_i` of :math:`PA`, each of them "
            r"soft-thresholded: :math:`W_2W_1 = A \sum_i (1 - \lambda/\sigma_i) v_iv_i^\top`. The "
            r"stable one has the :math:`\min(k, \cdot)` largest of those "
            r"with :math:`\sigma_i > \lambda` (see :doc:`threshold`). Soft thresholding by separate "
            r"L2 penalties is known; here it acts on the singular values of PA, with a passive "
            r"readout."
        ),
        assumptions=(WHITENED, ALIGNED, EQUAL_RATES, r":math:`\lambda > 0`.", SELECTED),
        steps=(
            Step(
                r"Take :math:`W_1 = GSV^\top` and :math:`W_2 = AVRSG^\top`. The error that is left:",
                error,
                A * left + lam * A * V * R * V.T,
                both,
                shown="A - W_2 W_1",
            ),
            Step(
                "The hidden layer is stationary.",
                w2.T * P.T * P * error,
                lam * w1,
                both,
                key=True,
                shown=r"Q P E",
            ),
            Step(
                "The readout is stationary, its unseen part included.",
                error * w1.T,
                lam * w2,
                both,
                key=True,
                shown="E W_1^T",
            ),
            Step("The map.", w2 * w1, A * V * (sp.Identity(l) - lam * R) * V.T, both, key=True, shown="W_2 W_1"),
            Step("The point is M-balanced.", w1 * w1.T, w2.T * P.T * P * w2, both, shown="W_1 W_1^T"),
        ),
        closed_form=ClosedForm(
            r"W_2 W_1(\infty)",
            form,
            (*TEACHER, *CHANNEL, lam),
            conditions,
            r"A v v^T \max(0, 1 - \lambda / \sigma), \quad \sigma v^T = P A \quad (r = 1, m = n = 2)",
        ),
        sizes="All sizes, and once more at n = m = k = r = 2 with one of two modes learned; the "
        "closed form is written out at r = 1, m = n = 2. " + MATHEMATICAL_SHAPES,
        theory=("end_point", "learned_modes"),
        test="tests/test_derivations_vs_theory.py::test_end_point_rank_one",
        citations=("kunin2019", "hanut2025"),
    )
