"""Which stationary points are stable: the threshold of learning."""

from __future__ import annotations

import sympy as sp

from derivations.core import EXPAND, Derivation, Step
from derivations.registry import derivation
from derivations.setting import ALIGNED, EQUAL_RATES, WHITENED, lam


def _jacobian(sizes: tuple[int, int], strengths: sp.Matrix, state: tuple[sp.Matrix, sp.Matrix]) -> sp.Matrix:
    """Return the Jacobian of backpropagation with weight decay on a diagonal teacher, at the given weights."""
    hidden, outputs = sizes
    w1, w2 = (
        sp.Matrix(hidden, 2, sp.symbols(f"x_1:{2 * hidden + 1}")),
        sp.Matrix(outputs, hidden, sp.symbols(f"y_1:{outputs * hidden + 1}")),
    )
    error = sp.diag(*strengths) - w2 * w1
    velocity = sp.Matrix([*(w2.T * error - lam * w1), *(error * w1.T - lam * w2)])
    variables = [*w1, *w2]
    point = dict(zip(variables, [*state[0], *state[1]], strict=True))
    return velocity.jacobian(variables).subs(point)


@derivation
def threshold() -> Derivation:
    """Derive which stationary points are stable: those that hold the strongest modes above the weight decay."""
    q, p, s1, s2, x = sp.symbols("q p sigma_1 sigma_2 x", positive=True)
    origin = _jacobian((1, 2), sp.Matrix([s1, s2]), (sp.zeros(1, 2), sp.zeros(2, 1)))
    one = _jacobian((2, 2), sp.Matrix([q**2 + lam, s2]), (sp.diag(q, 0), sp.diag(q, 0)))
    two = _jacobian((2, 2), sp.Matrix([q**2 + lam, p**2 + lam]), (sp.diag(q, p), sp.diag(q, p)))
    narrow = _jacobian((1, 2), sp.Matrix([s1, q**2 + lam]), (sp.Matrix([[0, q]]), sp.Matrix([0, q])))

    def spectrum(matrix: sp.Matrix) -> sp.Expr:
        return (x * sp.eye(matrix.rows) - matrix).det(method="berkowitz")

    bare = (x + s1 + lam) * (x + s2 + lam) * (x - (s1 - lam)) * (x - (s2 - lam))
    root1, root2 = q**2 + lam, p**2 + lam
    active = (x + 2 * lam) * (x + 2 * q**2)
    free = x * (x + 2 * lam) * (x + root1 - s2) * (x + root1 + s2) * (x + lam + s2) * (x + lam - s2)
    second = x * (x + 2 * lam) ** 2 * (x + 2 * p**2) * (x + root1 + root2 - 2 * lam) * (x + root1 + root2)
    return Derivation(
        name="threshold",
        title="The threshold: which modes are learned",
        statement=(
            "The pair :math:`(W_1, PW_2)` follows backpropagation on :math:`PA` (see "
            ":doc:`effective_teacher`), so in the singular bases of PA "
            r"stability is that of a diagonal teacher :math:`\mathrm{diag}(\sigma_i)`. An unlearned "
            r"mode has the rates "
            r":math:`\pm\sigma_i - \lambda`: it grows if and only if :math:`\sigma_i > \lambda`. A "
            r"hidden unit spent on a weaker mode gives way to a stronger one. "
            r"So the number of learned modes is :math:`\min(k, \#\{\sigma_i > \lambda\})`."
        ),
        assumptions=(
            WHITENED,
            ALIGNED,
            EQUAL_RATES,
            r":math:`\lambda > 0`; generic start; the passive part of the readout has rates "
            r":math:`-\lambda` minus an eigenvalue of :math:`W_1W_1^\top`, never unstable.",
        ),
        steps=(
            Step(
                r"At the origin with one hidden unit each mode has the rates :math:`\pm\sigma_i - \lambda`.",
                spectrum(origin),
                bare,
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_{0})",
            ),
            Step(
                r"One mode learned (:math:`\sigma_1 = \lambda + q^2`), a second hidden unit free: the "
                r"unlearned mode still has the rates "
                r":math:`\pm\sigma_2 - \lambda`; the others are stable while :math:`\sigma_2 < "
                r"\sigma_1`, and x = 0 is the free rotation of the hidden layer.",
                spectrum(one),
                active * free,
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_{1})",
            ),
            Step(
                r"Both modes learned (:math:`\sigma_1 = \lambda + q^2`, :math:`\sigma_2 = \lambda + "
                r"p^2`): apart from the rotation all rates are negative.",
                spectrum(two),
                active * second,
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_{12})",
            ),
            Step(
                r"One hidden unit spent on the weaker mode (:math:`\sigma_2 = \lambda + q^2`): a rate "
                r":math:`\sigma_1 - \sigma_2 > 0` lets the stronger one in.",
                spectrum(narrow),
                active * (x + root1 + s1) * (x + root1 - s1),
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_{2})",
            ),
        ),
        sizes="Characteristic polynomials at the explicit size n = 2, two visible outputs and k = 1 "
        "or 2. In words, for all sizes: in the singular "
        "bases the linearised flow couples only pairs (i, j) of modes, and each pair has these rates.",
        theory=("learned_modes",),
        test="tests/test_derivations_vs_theory.py::test_learned_modes",
        citations=("kunin2019", "hanut2025"),
    )
