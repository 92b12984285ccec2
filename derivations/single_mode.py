"""One mode seen through a channel: a logistic curve, its end point and its half time."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, at_sizes, entries, unit
from derivations.core import EVALUATE, SIMPLIFY, ClosedForm, Derivation, Step, derivation
from derivations.setting import ALIGNED, MATHEMATICAL_SHAPES, WHITENED, P, k, lam, m, n, r, t

s, c0, kappa, beta = sp.symbols("s c_0 kappa beta", positive=True)
root = sp.sqrt(kappa)
MODE = (
    WHITENED,
    ALIGNED,
    "One task direction, :math:`A = s\\,u v^\\top`, and an M-balanced start in it: :math:`W_2 = \\beta u g^\\top`, "
    ":math:`W_1 = \\sqrt{\\kappa}\\,\\beta g v^\\top` with unit vectors u, v, g and :math:`\\kappa = u^\\top M u > 0`.",
)
SCALAR = "Scalar; nothing depends on a size."


def logistic(decay: sp.Expr = lam) -> sp.Expr:
    """Return the strength of a mode away from the critical decay."""
    pace, end = 2 * (root * s - decay), s - decay / root
    return end / (1 + (end / c0 - 1) * sp.exp(-pace * t))


def _velocity(strength: sp.Expr) -> sp.Expr:
    """Return the equation of motion of a single mode."""
    return 2 * strength * (root * (s - strength) - lam)


def _conditions(candidate: sp.Expr) -> tuple[Step, ...]:
    excess = sp.Symbol("epsilon", positive=True)
    return (
        Step("It solves the equation of motion.", candidate.diff(t), _velocity(candidate), shown=r"\dot c(t)",
             shown_rhs=r"2c\,(\sqrt{\kappa}(s - c) - \lambda)"),
        Step("It starts at the given strength.", candidate.subs(t, 0), c0, shown="c(0)"),
        Step("Above threshold, :math:`s = (\\lambda + \\epsilon)/\\sqrt{\\kappa}`, it ends at :math:`\\epsilon/\\sqrt\\kappa = s - \\lambda/\\sqrt\\kappa`.",
             sp.limit(candidate.subs(s, (lam + excess) / root), t, sp.oo), excess / root, key=True, shown=r"\lim_{t\to\infty} c(t)"),
        Step("Below threshold, :math:`\\lambda = \\sqrt{\\kappa} s + \\epsilon`, it vanishes: the mode cannot be learned.",
             sp.limit(candidate.subs(lam, root * s + excess), t, sp.oo), sp.Integer(0), key=True, shown=r"\lim_{t\to\infty} c(t)"),
    )  # fmt: skip


@derivation
def single_mode() -> Derivation:
    """Derive the logistic equation of a single mode seen through a channel, and its solution."""
    u, v, g = (sp.MatrixSymbol(name, size, 1) for name, size in (("u", m), ("v", n), ("g", k)))
    visible = sp.Symbol("q", positive=True)  # the square root of kappa
    w1, w2 = visible * beta * g * v.T, beta * u * g.T
    error = (s - visible * beta**2) * u * v.T
    pace = beta * (visible * (s - visible * beta**2) - lam)
    identity, given = sp.Identity(1), ":math:`g^\\top g = v^\\top v = 1` and :math:`u^\\top M u = \\kappa = q^2`"
    relations = all_sizes((g.T * g, identity), (v.T * v, identity), (u.T * P.T * P * u, visible**2 * identity), given=given)
    vectors = {letter: unit(sp.Symbol(name, real=True)) for letter, name in ((u, "tau_1"), (v, "tau_2"), (g, "tau_3"))}
    first, seen = entries(P, 2, 2).col(0), unit(sp.Symbol("tau_4", real=True))
    channel = sp.Matrix.hstack(first, (visible * seen - first * vectors[u][0]) / vectors[u][1])
    example = at_sizes({n: 2, k: 2, m: 2, r: 2}, {**vectors, P: channel}, finish=lambda expr: sp.cancel(sp.together(expr)))
    both, strength = (relations, example), visible * beta**2
    return Derivation(
        name="single_mode",
        title="A single mode through a channel",
        statement=(
            "The strength :math:`c = u^\\top W_2W_1 v` of a balanced mode grows logistically, slowed by :math:`\\sqrt\\kappa`, towards "
            ":math:`s - \\lambda/\\sqrt\\kappa`. It is impossible to learn when :math:`\\sqrt\\kappa\\,s < \\lambda`."
        ),
        assumptions=(*MODE, ":math:`\\sqrt\\kappa\\,s \\neq \\lambda` in the formula; see :doc:`critical_mode` for the critical case."),
        steps=(
            Step("The hidden layer keeps its form, with :math:`q = \\sqrt\\kappa` and :math:`\\dot\\beta` as below.",
                 w2.T * P.T * P * error - lam * w1, visible * pace * g * v.T, both, shown=r"\dot W_1"),
            Step("So does the readout, with the same :math:`\\dot\\beta`.", error * w1.T - lam * w2, pace * u * g.T, both, shown=r"\dot W_2"),
            Step("Hence :math:`c = \\sqrt\\kappa\\beta^2` obeys a logistic equation.",
                 strength.diff(beta) * pace, 2 * strength * (visible * (s - strength) - lam), key=True, shown=r"\dot c",
                 shown_rhs=r"2c\,(\sqrt{\kappa}(s - c) - \lambda)"),
        ),
        closed_form=ClosedForm("c(t)", logistic(), (t, s, c0, kappa, lam), _conditions),
        sizes="The reduction holds for all sizes; it is checked once more at n = m = k = r = 2 with arbitrary unit vectors. " + MATHEMATICAL_SHAPES,
        theory=("mode_strength",),
        test="tests/test_derivations_vs_theory.py::test_mode_strength",
        citations=("saxe2013", "hanut2025"),
    )  # fmt: skip


@derivation
def critical_mode() -> Derivation:
    """Derive the algebraic decay of a mode exactly at its threshold."""
    form = c0 / (1 + 2 * root * c0 * t)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step("It solves the critical equation.", candidate.diff(t), -2 * root * candidate**2, key=True, shown=r"\dot c(t)",
                 shown_rhs=r"-2 \sqrt{\kappa}\, c^2"),
            Step("It starts at the given strength.", candidate.subs(t, 0), c0, shown="c(0)"),
            Step("It is the limit of the logistic curve.", sp.limit(logistic(root * s - lam), lam, 0), candidate, (SIMPLIFY,),
                 shown=r"\lim_{\lambda \to \sqrt{\kappa} s} c_{\mathrm{logistic}}(t)"),
            Step("It vanishes, but only as 1/t.", sp.limit(candidate * t, t, sp.oo), 1 / (2 * root), shown=r"\lim_{t \to \infty} t\, c(t)"),
        )  # fmt: skip

    return Derivation(
        name="critical_mode",
        title="A single mode at its threshold",
        statement="At :math:`\\lambda = \\sqrt\\kappa\\,s` the mode is forgotten, algebraically instead of exponentially.",
        assumptions=(*MODE, ":math:`\\lambda = \\sqrt\\kappa\\,s`."),
        steps=(
            Step("The linear growth and the decay cancel.", _velocity(beta).subs(lam, root * s), -2 * root * beta**2, shown=r"\left. \dot c \right|_{c=\beta}"),
        ),
        closed_form=ClosedForm("c(t)", form, (t, c0, kappa), conditions),
        sizes=SCALAR,
        theory=("mode_strength",),
        test="tests/test_derivations_vs_theory.py::test_mode_strength_at_threshold",
        citations=("hanut2025",),
    )  # fmt: skip


@derivation
def half_time() -> Derivation:
    """Derive the time a mode needs to reach half of its task strength without weight decay."""
    form = sp.log(s / c0 - 1) / (2 * root * s)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        text = "At that time the mode has half its strength."
        return (Step(text, logistic(sp.Integer(0)).subs(t, candidate), s / 2, key=True, shown="c(t_{1/2})"),)

    share = sp.Symbol("nu", positive=True)
    return Derivation(
        name="half_time",
        title="Time to half of a mode's strength",
        statement="Without weight decay a channel that sees the share :math:`\\kappa` of a direction makes learning slower by :math:`1/\\sqrt\\kappa`, and not impossible.",
        assumptions=(*MODE, ":math:`\\lambda = 0` and :math:`c_0 < s`; the time is negative for :math:`c_0 > s/2`."),
        steps=(
            Step("Halving the root of :math:`\\kappa` doubles the time.", form.subs(kappa, kappa * share), form / sp.sqrt(share),
                 shown=r"t_{1/2}(\nu \kappa)", shown_rhs=r"t_{1/2}(\kappa) / \sqrt{\nu}"),
        ),
        closed_form=ClosedForm("t_{1/2}", form, (s, c0, kappa), conditions),
        sizes=SCALAR,
        theory=("time_to_half",),
        test="tests/test_derivations_vs_theory.py::test_time_to_half",
        citations=("saxe2013",),
    )  # fmt: skip


@derivation
def saxe_mode() -> Derivation:
    """Derive the mode solution of backpropagation in its published form."""
    a0 = sp.Symbol("a_0", positive=True)
    form = s * sp.exp(2 * s * t) / (sp.exp(2 * s * t) - 1 + s / a0)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step("It solves the equation of a balanced mode under backpropagation.", candidate.diff(t), 2 * candidate * (s - candidate),
                 shown=r"\dot a(t)", shown_rhs="2a(s - a)", key=True),
            Step("It starts at the given strength.", candidate.subs(t, 0), a0, shown="a(0)"),
            Step("It ends at the strength of the task.", sp.limit(candidate, t, sp.oo), s, shown=r"\lim_{t\to\infty} a(t)"),
            Step("It is the logistic curve of a fully visible mode without weight decay.", logistic(sp.Integer(0)).subs({kappa: 1, c0: a0}), candidate,
                 shown=r"\left. c(t) \right|_{\kappa = 1,\, \lambda = 0}"),
        )  # fmt: skip

    x, y = sp.symbols("x y", positive=True)
    return Derivation(
        name="saxe_mode",
        title="Backpropagation: the mode solution of Saxe et al.",
        statement="With full feedback and no weight decay each balanced mode of a two-layer linear network learns independently along a sigmoid.",
        assumptions=(WHITENED, "Backpropagation; weights aligned with the singular vectors of the task, balanced; :math:`\\lambda = 0`."),
        steps=(
            Step("For scalar weights x and y the strength a = xy obeys the equation on the balanced line.",
                 (y * (s - x * y) * y + x * x * (s - x * y)).subs(y, x), 2 * x**2 * (s - x**2), (EVALUATE,), shown=r"\left.(\dot x y + x \dot y)\right|_{y = x}"),
        ),
        closed_form=ClosedForm("a(t)", form, (t, s, a0), conditions),
        sizes=SCALAR,
        theory=("mode_strength",),
        test="tests/test_derivations_vs_theory.py::test_saxe_mode",
        citations=("saxe2013",),
    )  # fmt: skip
