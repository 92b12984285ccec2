"""What a random channel teaches when weights decay: final loss, boundaries and times."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, SIMPLIFY, ClosedForm, Derivation, Step
from derivations.overlap_spectrum import UNIFORM
from derivations.registry import derivation
from derivations.setting import lam
from derivations.single_mode import MODE, SCALAR, c0, kappa, logistic, root, s

alpha, beta = sp.symbols("alpha beta", positive=True)
p, q, u = sp.symbols("p q u", positive=True)  # edges p^2 < q^2, x = (p^2 + q^2 u^2) / (1 + u^2)
FAR, NEAR = sp.sqrt(1 - p**2), sp.sqrt(1 - q**2)


def _tail() -> sp.Expr:
    """Return 2 pi alpha times the integral of the Jacobi density over x, from x(u) to the upper edge."""
    place = (p**2 + q**2 * u**2) / (1 + u**2)
    over = (sp.pi / 2 - sp.atan(q * u / p)) / (p * q)
    rest = sp.pi / 2 - sp.atan(u * NEAR / FAR)
    return (q**2 - p**2) * u / (1 + u**2) / place + (p**2 + q**2 - 2 * p**2 * q**2) * over - 2 * NEAR * FAR * rest


@derivation
def overlap_tail() -> Derivation:
    """Derive the mean inverse overlap above a threshold, from which the final loss follows, and the boundaries."""
    place = (p**2 + q**2 * u**2) / (1 + u**2)
    jacobi = (q**2 - p**2) * u / (1 + u**2) / (place * (1 - place))
    phi, psi, theta, share = sp.symbols("varphi psi theta kappa", positive=True)
    full = sp.pi / 2 * ((p**2 + q**2 - 2 * p**2 * q**2) / (p * q) - 2 * FAR * NEAR)
    narrow = {p * q: beta - alpha}

    def edge(sign: int) -> sp.Expr:
        """Return the root of an edge with alpha = sin^2 phi and beta = sin^2 psi, both angles below pi / 2."""
        return sp.sin(psi) * sp.cos(phi) + sign * sp.cos(psi) * sp.sin(phi)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It has the right derivative.",
                candidate.diff(u),
                -jacobi / place * place.diff(u),
                shown=r"\frac{dT}{du}",
                shown_rhs=r"-\frac{\sqrt{(x - p^2)(q^2 - x)}}{x^2(1 - x)} \frac{dx}{du}",
            ),
            Step(
                "It vanishes at the upper edge, here for p = 3/5 and q = 4/5.",
                sp.Limit(candidate.subs({p: sp.Rational(3, 5), q: sp.Rational(4, 5)}), u, sp.oo),
                sp.Integer(0),
                (EVALUATE,),
                shown=r"\lim_{u\to\infty} T(u)",
            ),
            Step("It has this value at the lower edge.", candidate.subs(u, 0), full, shown="T(0)"),
        )

    return Derivation(
        name="overlap_tail",
        title="The final loss behind a random channel",
        statement=(
            r"For d equally strong modes and a random channel a mode of overlap :math:`\kappa` ends with the share "
            r":math:`\min(1, \theta^2/\kappa)` of its loss, :math:`\theta = \lambda/s`. The mean needs the inverse "
            r"overlaps above :math:`\theta^2`; with edges p² and q² of the Jacobi law, :math:`x = (p^2 + q^2u^2)/(1 + "
            r"u^2)` and :math:`T = 2\pi\alpha \int_x^{q^2} f(y)\,dy/y`, they are the closed form. With :math:`\alpha = "
            r"\sin^2\varphi`, :math:`\beta = \sin^2\psi` the boundaries of the phase diagram, where :math:`\theta^2` "
            r"is an "
            r"edge, are straight lines: :math:`\theta = \sin(\psi \mp \varphi)`."
        ),
        assumptions=(UNIFORM, r":math:`m \to \infty` at fixed d/m and r/m.", r"All :math:`s_i = s`."),
        steps=(
            Step(
                r"A learned mode keeps the error :math:`\lambda/\sigma` of its strength, :math:`\sigma = "
                r"s\sqrt\kappa`.",
                (1 - (1 - theta / sp.sqrt(share))) ** 2,
                theta**2 / share,
                shown=r"(1 - (1 - \lambda/\sigma))^2",
            ),
            Step(
                "The lower edge in angles,",
                sp.expand(edge(-1) ** 2),
                sp.sin(psi - phi) ** 2,
                (SIMPLIFY,),
                key=True,
                shown="x_-",
            ),
            Step("and the upper.", sp.expand(edge(1) ** 2), sp.sin(psi + phi) ** 2, (SIMPLIFY,), key=True, shown="x_+"),
            Step(
                r"Without threshold, for :math:`\alpha < \beta` and :math:`\alpha + \beta < 1`, where :math:`pq = "
                r"\beta - "
                r"\alpha`, :math:`p^2 + q^2 = 2(\alpha + \beta - 2\alpha\beta)` and :math:`(1 - p^2)(1 - q^2) = "
                r"(1 - \alpha - \beta)^2`: the limit of the exact :math:`(m - d - 1)/(r - d - 1)`.",
                sp.pi
                / 2
                * (
                    (2 * (alpha + beta - 2 * alpha * beta) - 2 * narrow[p * q] ** 2) / narrow[p * q]
                    - 2 * (1 - alpha - beta)
                )
                / (2 * sp.pi * alpha),
                (1 - alpha) / (beta - alpha),
                shown=r"\int \frac{dF}{x}",
            ),
        ),
        closed_form=ClosedForm("T", _tail(), (u, p, q), conditions),
        sizes="Scalar identities; that the limit law is this one is quoted, not derived.",
        theory=("inverse_overlap_tail", "expected_loss", "phase_boundaries"),
        test="tests/test_derivations_vs_theory.py::test_overlap_tail",
        citations=("wachter1980", "collins2005"),
    )


@derivation
def half_time_decay() -> Derivation:
    """Derive the time to half of the task's strength under weight decay."""
    gain = root * s - lam
    form = sp.log(s * (gain - root * c0) / (c0 * (2 * gain - root * s))) / (2 * gain)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        reached = logistic().subs(sp.Symbol("t", nonnegative=True), candidate)
        return (Step("At that time the mode has the strength s/2.", reached, s / 2, key=True, shown="c(t_{1/2})"),)

    return Derivation(
        name="half_time_decay",
        title="Time to half of a mode's strength, with weight decay",
        statement=r"Only modes with :math:`\sqrt\kappa\,s > 2\lambda` ever have half of the strength that the task "
        r"gives "
        "them; they reach it at the time below.",
        assumptions=(*MODE, r":math:`\sqrt\kappa\,s > 2\lambda` and :math:`c_0 < s/2`."),
        steps=(
            Step(
                r"Without decay it is the earlier result.",
                form.subs(lam, 0),
                sp.log(s / c0 - 1) / (2 * root * s),
                shown=r"t_{1/2}|_{\lambda = 0}",
            ),
            Step(
                r"The end point is above s/2 just for these modes.",
                (s - lam / root) - s / 2,
                (root * s - 2 * lam) / (2 * root),
                shown=r"c(\infty) - s/2",
            ),
        ),
        closed_form=ClosedForm("t_{1/2}", form, (s, c0, kappa, lam), conditions),
        sizes=SCALAR,
        theory=("time_to_half", "time_to_half_cdf", "half_learned_fraction"),
        test="tests/test_derivations_vs_theory.py::test_time_to_half_with_decay",
        citations=("saxe2013", "hanut2025"),
    )
