"""One mode seen through a channel: a logistic curve, its threshold and its end point."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, at_sizes, entries, unit
from derivations.core import EVALUATE, ClosedForm, Derivation, Step, rational
from derivations.registry import derivation
from derivations.setting import ALIGNED, MATHEMATICAL_SHAPES, WHITENED, P, k, lam, m, n, r, t

s, c0, kappa, beta = sp.symbols("s c_0 kappa beta", positive=True)
root = sp.sqrt(kappa)
MODE = (
    WHITENED,
    ALIGNED,
    r"One task direction, :math:`A = s\,u v^\top`, and an M-balanced start in it: "
    r":math:`W_2 = \beta u g^\top`, "
    r":math:`W_1 = \sqrt{\kappa}\,\beta g v^\top` with unit vectors u, v, g and "
    r":math:`\kappa = u^\top M u > 0`.",
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
        Step(
            "It solves the equation of motion.",
            candidate.diff(t),
            _velocity(candidate),
            shown=r"\dot c(t)",
            shown_rhs=r"2c\,(\sqrt{\kappa}(s - c) - \lambda)",
        ),
        Step("It starts at the given strength.", candidate.subs(t, 0), c0, shown="c(0)"),
        Step(
            r"Above threshold, :math:`s = (\lambda + \epsilon)/\sqrt{\kappa}`, it ends at "
            r":math:`\epsilon/\sqrt\kappa = s - \lambda/\sqrt\kappa`.",
            sp.Limit(candidate.subs(s, (lam + excess) / root), t, sp.oo),
            excess / root,
            (EVALUATE,),
            key=True,
            shown=r"\lim_{t\to\infty} c(t)",
        ),
        Step(
            r"Below threshold, :math:`\lambda = \sqrt{\kappa} s + \epsilon`, it vanishes: the mode "
            r"cannot be learned.",
            sp.Limit(candidate.subs(lam, root * s + excess), t, sp.oo),
            sp.Integer(0),
            (EVALUATE,),
            key=True,
            shown=r"\lim_{t\to\infty} c(t)",
        ),
    )


@derivation
def single_mode() -> Derivation:
    """Derive the logistic equation of a single mode seen through a channel, and its solution."""
    u, v, g = (sp.MatrixSymbol(name, size, 1) for name, size in (("u", m), ("v", n), ("g", k)))
    visible = sp.Symbol("q", positive=True)  # the square root of kappa
    w1, w2 = visible * beta * g * v.T, beta * u * g.T
    error = (s - visible * beta**2) * u * v.T
    pace = beta * (visible * (s - visible * beta**2) - lam)
    identity, given = sp.Identity(1), r":math:`g^\top g = v^\top v = 1` and :math:`u^\top M u = \kappa = q^2`"
    relations = all_sizes(
        (g.T * g, identity), (v.T * v, identity), (u.T * P.T * P * u, visible**2 * identity), given=given
    )
    vectors = {letter: unit(sp.Symbol(name, real=True)) for letter, name in ((u, "tau_1"), (v, "tau_2"), (g, "tau_3"))}
    first, seen = entries(P, 2, 2).col(0), unit(sp.Symbol("tau_4", real=True))
    channel = sp.Matrix.hstack(first, (visible * seen - first * vectors[u][0]) / vectors[u][1])
    example = at_sizes({n: 2, k: 2, m: 2, r: 2}, {**vectors, P: channel}, finish=rational)
    both, strength = (relations, example), visible * beta**2
    return Derivation(
        name="single_mode",
        title="A single mode through a channel",
        statement=(
            r"The strength :math:`c = u^\top W_2W_1 v` of a balanced mode grows logistically, "
            r"slowed by :math:`\sqrt\kappa`, towards "
            r":math:`s - \lambda/\sqrt\kappa`. It is impossible to learn when :math:`\sqrt\kappa\,s "
            r"< \lambda`."
        ),
        assumptions=(
            *MODE,
            r":math:`\sqrt\kappa\,s \neq \lambda` in the formula; see :doc:`critical_mode` for the "
            r"critical case.",
        ),
        steps=(
            Step(
                r"The hidden layer keeps its form, with :math:`q = \sqrt\kappa` and :math:`\dot\beta` "
                r"as below.",
                w2.T * P.T * P * error - lam * w1,
                visible * pace * g * v.T,
                both,
                shown=r"\dot W_1",
            ),
            Step(
                r"So does the readout, with the same :math:`\dot\beta`.",
                error * w1.T - lam * w2,
                pace * u * g.T,
                both,
                shown=r"\dot W_2",
            ),
            Step(
                r"Hence :math:`c = \sqrt\kappa\beta^2` obeys a logistic equation.",
                strength.diff(beta) * pace,
                2 * strength * (visible * (s - strength) - lam),
                key=True,
                shown=r"\dot c",
                shown_rhs=r"2c\,(\sqrt{\kappa}(s - c) - \lambda)",
            ),
        ),
        closed_form=ClosedForm("c(t)", logistic(), (t, s, c0, kappa, lam), _conditions),
        sizes="The reduction holds for all sizes; it is checked once more at n = m = k = r = 2 with "
        "arbitrary unit vectors. " + MATHEMATICAL_SHAPES,
        theory=("mode_strength",),
        test="tests/test_derivations_vs_theory.py::test_mode_strength",
        citations=("saxe2013", "hanut2025"),
    )


@derivation
def critical_mode() -> Derivation:
    """Derive the algebraic decay of a mode exactly at its threshold."""
    form = c0 / (1 + 2 * root * c0 * t)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It solves the critical equation.",
                candidate.diff(t),
                -2 * root * candidate**2,
                key=True,
                shown=r"\dot c(t)",
                shown_rhs=r"-2 \sqrt{\kappa}\, c^2",
            ),
            Step("It starts at the given strength.", candidate.subs(t, 0), c0, shown="c(0)"),
            Step(
                "It is the limit of the logistic curve.",
                sp.Limit(logistic(root * s - lam), lam, 0),
                candidate,
                (EVALUATE,),
                shown=r"\lim_{\lambda \to \sqrt{\kappa} s} c_{\mathrm{logistic}}(t)",
            ),
            Step(
                "It vanishes, but only as 1/t.",
                sp.Limit(candidate * t, t, sp.oo),
                1 / (2 * root),
                (EVALUATE,),
                shown=r"\lim_{t \to \infty} t\, c(t)",
            ),
        )

    return Derivation(
        name="critical_mode",
        title="A single mode at its threshold",
        statement=r"At :math:`\lambda = \sqrt\kappa\,s` the mode is forgotten, algebraically instead of "
        r"exponentially.",
        assumptions=(*MODE, r":math:`\lambda = \sqrt\kappa\,s`."),
        steps=(
            Step(
                "The linear growth and the decay cancel.",
                _velocity(beta).subs(lam, root * s),
                -2 * root * beta**2,
                shown=r"\left. \dot c \right|_{c=\beta}",
            ),
        ),
        closed_form=ClosedForm("c(t)", form, (t, c0, kappa), conditions),
        sizes=SCALAR,
        theory=("mode_strength",),
        test="tests/test_derivations_vs_theory.py::test_mode_strength_at_threshold",
        citations=("hanut2025",),
    )
