"""Starts whose layers differ in size by a multiple of the identity: the linear form of the flow, and a single mode."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes
from derivations.core import EXPAND, SIMPLIFY, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import ALIGNED, MATHEMATICAL_SHAPES, W1, W2, WHITENED, A, P, k, t

mu = sp.Symbol("mu", real=True)
s, z0, kappa = sp.symbols("s z_0 kappa", positive=True)


@derivation
def unbalanced_trajectory() -> Derivation:
    """Derive the linear equations behind the trajectory from a start with an imbalance."""
    seen, error = W2.T * P.T * P * W2, A - W2 * W1
    total = (W1 * W1.T + seen) / 2
    relation = all_sizes((W1 * W1.T, seen + mu * sp.Identity(k)), given=r":math:`W_1W_1^\top = W_2^\top M W_2 + \mu I`")
    first, second = (W2.T * P.T * P * error).T, error * W1.T
    square = first.T * W1.T  # half of the rate of W1 W1^T, before it is made symmetric
    return Derivation(
        name="unbalanced_trajectory",
        title="The trajectory from a start with an imbalance",
        statement=(
            r"With :math:`G = \tfrac12 (W_1W_1^\top + W_2^\top MW_2)` both layers follow linear equations up to one "
            r"common "
            r"factor on the right, :math:`-G`. A common factor C with :math:`\dot C = -CG` is taken out by "
            r":math:`W_1^\top = "
            r"X_1C`, :math:`W_2 = X_2C`; then :math:`CC^\top` is the inverse of :math:`I + \int_0^t (X_1^\top X_1 + "
            r"X_2^\top MX_2)\,ds`."
        ),
        assumptions=(WHITENED, ALIGNED, r":math:`\lambda = 0` and the imbalance at one time, hence at all.",
                     MATHEMATICAL_SHAPES),
        steps=(
            Step("The imbalance is conserved.", square + square.T, second.T * P.T * P * W2 + W2.T * P.T * P * second,
                 (all_sizes(),), shown=r"\frac{d}{dt} W_1W_1^\top", shown_rhs=r"\frac{d}{dt} W_2^\top M W_2"),
            Step("The first layer grows at half of the imbalance,", first,
                 A.T * P.T * P * W2 + mu / 2 * W1.T - W1.T * total, (relation,), key=True, shown=r"\dot W_1^\top",
                 shown_rhs=r"A^\top M W_2 + \tfrac{\mu}{2} W_1^\top - W_1^\top G"),
            Step("and the second decays as fast.", second, A * W1.T - mu / 2 * W2 - W2 * total, (relation,), key=True,
                 shown=r"\dot W_2", shown_rhs=r"A W_1^\top - \tfrac{\mu}{2} W_2 - W_2 G"),
        ),
        sizes="The identities hold for all sizes.",
        theory=("exact_map", "m_balanced_weights"),
        test="tests/test_theory_unbalanced.py::test_map_is_the_flow",
        citations=("fukumizu1998", "domine2024"),
    )  # fmt: skip


@derivation
def unbalanced_mode() -> Derivation:
    """Derive the strength of a single mode from a start with an imbalance."""
    a, b, q, c = sp.symbols("a b q c", positive=True)  # strengths of the layers; root of kappa; strength of the mode
    size, omega = sp.symbols("mu omega", positive=True)
    slower, faster = q**2 * b * (s - a * b), (s - a * b) * a
    z = sp.Function("z")(t)
    pace = sp.sqrt(kappa * s**2 + mu**2 / 4)
    high, low = 2 * pace + 2 * sp.sqrt(kappa) * s, 2 * pace - 2 * sp.sqrt(kappa) * s
    fading = sp.exp(-2 * pace * t) * (high - z0) / (z0 + low)
    form = (high - low * fading) / (1 + fading)
    speed = (s - c) ** 2 * (size**2 + 4 * q**2 * c**2)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        velocity = -(candidate - high) * (candidate + low) / 2
        return (
            Step("It solves its equation of motion.", candidate.diff(t), velocity, shown=r"\dot z",
                 shown_rhs=r"-\tfrac12 (z - z_+)(z + z_-)"),
            Step("It starts where it should.", candidate.subs(t, 0), z0, shown="z(0)"),
        )  # fmt: skip

    return Derivation(
        name="unbalanced_mode",
        title="A single mode from an unbalanced start",
        statement=(
            r"With strengths a of the first layer and b of the second, :math:`c = ab` and :math:`\mu = a^2 - \kappa "
            r"b^2`. "
            r"In :math:`z = (a + \sqrt\kappa\,b)^2`, so that :math:`4\sqrt\kappa\,c = z - \mu^2/z`, the mode follows a "
            r"Riccati equation with the fixed points :math:`z_+` and :math:`-z_-`, :math:`z_\pm = 2\omega \pm "
            r"2\sqrt\kappa\,s`, :math:`\omega = \sqrt{\kappa s^2 + \mu^2/4}`."
        ),
        assumptions=(
            WHITENED, ALIGNED, r":math:`\lambda = 0`; one mode, one hidden direction, :math:`q = \sqrt\kappa`.",
        ),
        steps=(
            Step("The imbalance is conserved.", 2 * a * slower - q**2 * 2 * b * faster, sp.Integer(0),
                 shown=r"\dot\mu"),
            Step("The square of the velocity of c, in a and b,", (slower * b + a * faster) ** 2,
                 speed.subs({size: a**2 - q**2 * b**2, c: a * b}), (EXPAND,), key=True, shown=r"\dot c^2",
                 shown_rhs=r"(s - c)^2 (\mu^2 + 4\kappa c^2)"),
            Step("The velocity of z.", 2 * (a + q * b) * (slower + q * faster),
                 2 * q * (s - a * b) * (a + q * b) ** 2, (EXPAND,), shown=r"\dot z",
                 shown_rhs=r"2\sqrt\kappa\,(s - c)\,z"),
            Step(r"In z alone, with :math:`c = (z - \mu^2/z)/(4q)`:", 2 * q * (s - (z - size**2 / z) / (4 * q)) * z,
                 -(z - 2 * omega - 2 * q * s) * (z + 2 * omega - 2 * q * s) / 2 + (size**2 - 4 * omega**2
                 + 4 * q**2 * s**2) / 2, (EXPAND,), shown=r"\dot z"),
            Step("The curve bends where this vanishes, which has roots only for small imbalance:",
                 speed.diff(c) / (2 * (c - s)), size**2 + 8 * q**2 * c**2 - 4 * q**2 * s * c, (SIMPLIFY,),
                 shown=r"-\ddot c / (s - c)"),
            Step(r"its discriminant is positive for :math:`|\mu| < s\sqrt{\kappa/2}`.",
                 sp.discriminant(size**2 + 8 * q**2 * c**2 - 4 * q**2 * s * c, c),
                 32 * q**2 * (q**2 * s**2 / 2 - size**2), (EXPAND,), key=True,
                 shown=r"\mathrm{disc}", shown_rhs=r"32\kappa\,(\kappa s^2/2 - \mu^2)"),
        ),
        closed_form=ClosedForm("z(t)", form, (t, s, z0, kappa, mu), conditions),
        sizes="Scalar; nothing depends on a size.",
        theory=("unbalanced_mode_strength", "rich_imbalance"),
        test="tests/test_derivations_vs_theory.py::test_unbalanced_mode",
        citations=("saxe2013", "domine2024"),
    )  # fmt: skip
