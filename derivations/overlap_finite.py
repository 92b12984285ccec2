"""What a random channel sees of many directions at finite width: exact moments, and the first correction to the law."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, GAMMA, ClosedForm, Derivation, Step
from derivations.overlap_spectrum import UNIFORM, alpha, beta, outputs, rank, x
from derivations.registry import derivation

directions = sp.Symbol("d", positive=True)
LOW, HIGH = ((sp.sqrt(alpha * (1 - beta)) + sign * sp.sqrt(beta * (1 - alpha))) ** 2 for sign in (-1, 1))


def second_moment() -> sp.Expr:
    """Return the mean of tr K^2 / d at finite size."""
    m, r, d = outputs, rank, directions
    return r * (m * (d + r + 1) - r * d - 2) / (m * (m - 1) * (m + 2))


@derivation
def overlap_moments() -> Derivation:
    """Derive the moments of the overlaps at finite size from the invariance of the projector."""
    m, r, d = outputs, rank, directions
    cross = r * (m - r) / (m * (m - 1) * (m + 2))
    own = (r**2 - 2 * cross * m) / m**2
    count, seen = sp.symbols("nu y", positive=True)
    density = seen ** (count / 2 - 1) * sp.exp(-seen / 2) / (2 ** (count / 2) * sp.gamma(count / 2))
    shifted = density.subs(count, count - 2)  # the same law with two coordinates fewer, normalised too

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step("For one direction it is the second moment of the Beta law.", candidate.subs(d, 1),
                 r * (r + 2) / (m * (m + 2))),
            Step("For all directions K has the eigenvalues of the projector.", candidate.subs(d, m), r / m),
            Step("A channel as wide as the output sees everything.", candidate.subs(r, m), sp.Integer(1)),
        )  # fmt: skip

    return Derivation(
        name="overlap_moments",
        title="What a random channel sees at finite size",
        statement=(
            r"The overlaps of d orthonormal directions U with a random channel, the eigenvalues of "
            r":math:`K = U^\top M U`, have these moments at every size:"
        ),
        assumptions=(UNIFORM, r":math:`d \leq m`; for the inverse :math:`r > d + 1`."),
        steps=(
            Step(
                r"By invariance :math:`\langle M_{ij}M_{kl}\rangle = a\,\delta_{ij}\delta_{kl} + "
                r"b\,(\delta_{ik}\delta_{jl}"
                r" + \delta_{il}\delta_{jk})`. The trace of M is r:",
                own * m**2 + 2 * cross * m,
                r**2,
                shown=r"a m^2 + 2 b m",
            ),
            Step("and M is its own square:", own * m + cross * (m**2 + m), r, shown=r"a m + b (m^2 + m)"),
            Step(
                r"Contracting with :math:`UU^\top` instead gives the second moment.",
                own + cross * (d + 1),
                second_moment(),
                key=True,
                shown=r"\tfrac1d \langle \mathrm{tr}\, K^2 \rangle",
            ),
            Step(
                "The trace itself fluctuates by a number that does not grow with m at fixed fractions.",
                own * d**2 + 2 * cross * d - (r * d / m) ** 2,
                2 * r * d * (m - r) * (m - d) / (m**2 * (m - 1) * (m + 2)),
                key=True,
                shown=r"\mathrm{var}\, \mathrm{tr}\, K",
            ),
            Step(
                r"For the inverse, :math:`K = (X + Y)^{-1/2} X (X + Y)^{-1/2}` with Wishart matrices X and Y of r and "
                r"m - r degrees of freedom, and the inverse of a diagonal entry of :math:`X^{-1}` is a chi-squared "
                r"variable of :math:`\nu = r - d + 1` degrees of freedom. The mean of its inverse, by the "
                r"normalisation of a law with "
                "two coordinates fewer:",
                sp.powsimp(density / shifted / seen),
                1 / (count - 2),
                (GAMMA,),
                shown=r"\langle 1/\chi^2_\nu \rangle",
            ),
            Step(
                r"So :math:`\langle X^{-1} \rangle = I/(r - d - 1)`, and with "
                r":math:`\mathrm{tr}\, K^{-1} = d + \mathrm{tr}\, X^{-1}Y` and :math:`\langle Y\rangle = (m - r) I`:",
                1 + (m - r) / (r - d - 1),
                (m - d - 1) / (r - d - 1),
                key=True,
                shown=r"\tfrac1d \langle \mathrm{tr}\, K^{-1} \rangle",
            ),
        ),
        closed_form=ClosedForm(
            r"\tfrac1d \langle \mathrm{tr}\, K^2 \rangle", second_moment(), (rank, directions, outputs), conditions
        ),
        sizes="All sizes; that X, Y and the chi-squared law are as named is quoted.",
        theory=("overlap_moment",),
        test="tests/test_derivations_vs_theory.py::test_overlap_moments",
        citations=("collins2005",),
    )


def _ward() -> tuple[Step, ...]:
    """Return the two identities that turn an integration by parts into the loop equation."""
    z, y = sp.symbols("z y")
    a, b = sp.symbols("a b", positive=True)
    return (
        Step(
            r"The overlaps repel, with the joint density :math:`\prod_i x_i^a (1 - x_i)^b \prod_{i < j} |x_i - x_j|`, "
            r":math:`a = (r - d - 1)/2`, :math:`b = (m - r - d - 1)/2`. Integrate :math:`\sum_i \partial_i (z - "
            r"x_i)^{-1}` "
            "against it; a pair contributes a product:",
            1 / ((z - x) * (x - y)) + 1 / ((z - y) * (y - x)),
            1 / ((z - x) * (z - y)),
        ),
        Step(
            "and an exponent a simple pole.",
            (a / x - b / (1 - x)) / (z - x),
            a / z * (1 / x + 1 / (z - x)) - b / (1 - z) * (1 / (z - x) - 1 / (1 - x)),
        ),
    )


@derivation
def overlap_correction() -> Derivation:
    """Derive the first correction to the Jacobi law at finite size from its loop equation."""
    z, rate, low, high = sp.symbols("z c x_- x_+", positive=True)
    a, b = sp.symbols("a b", positive=True)
    root = sp.sqrt((z - low) * (z - high))
    slope = rate * root / (z * (1 - z))
    leading = slope - a / z + b / (1 - z)
    form = (1 / (z - low) + 1 / (z - high)) / 4 - 1 / (2 * root)
    small = sp.Symbol("epsilon", positive=True)
    arcsine = 1 / sp.sqrt((1 - small * low) * (1 - small * high))  # z / root at z = 1 / epsilon
    edges = {low: LOW, high: HIGH}
    m, fractions = outputs, {rank: beta * outputs, directions: alpha * outputs}
    exact = m * alpha * (second_moment().subs(fractions) - beta * (alpha + beta - alpha * beta))
    wide, deeper = sp.symbols("p q", positive=True)  # roots of the edges
    inverse = (m - directions - 1) / (rank - directions - 1)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It solves the loop equation at next order, whose unknown constants are one simple pole at each end.",
                slope * candidate - leading.diff(z) / 2 - (1 / z - 1 / (1 - z)) * leading / 2,
                -(rate + a + b) / (2 * z * (1 - z)),
                shown=r"y W_1 - \tfrac12 W_0' - \tfrac12 \Big(\frac1z - \frac1{1 - z}\Big) W_0",
            ),
            Step(
                "It carries no mass, since the number of overlaps is exact.",
                sp.Limit(z * candidate.subs({low: sp.Rational(1, 4), high: sp.Rational(1, 2)}), z, sp.oo),
                sp.Integer(0),
                (EVALUATE,),
                shown=r"\lim_{z\to\infty} z W_1(z)",
            ),
        )

    return Derivation(
        name="overlap_correction",
        title="The law of the overlaps at finite width",
        statement=(
            r"The sum of a smooth function f over the overlaps has the mean :math:`d\int f\,dF + \tfrac14 (f(x_-) + "
            r"f(x_+)) - \tfrac12 \langle f\rangle_{\mathrm{arcsine}} + O(1/m)`, with the Jacobi law F and the "
            r"arcsine law "
            r"on the same edges. The resolvent :math:`\langle\sum_i (z - x_i)^{-1}\rangle - d\int (z - x)^{-1} "
            r"dF(x)` of "
            r"the correction is"
        ),
        assumptions=(
            UNIFORM,
            r":math:`m \to \infty` at fixed d/m and r/m, derived for :math:`d < r < m - d`. The other cases follow "
            r"by the "
            r"symmetries (d, r) and :math:`x \to 1 - x`, which leave the edges and the atoms' exact numbers as they "
            r"are.",
        ),
        steps=(
            *_ward(),
            Step(
                r"At leading order the resolvent is :math:`W_0 = y - a/z + b/(1 - z)` with :math:`y = c\,"
                r"\sqrt{(z - x_-)(z - x_+)}/(z(1 - z))`. At next order :math:`y W_1 = \tfrac12 W_0' + \tfrac12 (1/z - "
                r"1/(1 - z)) W_0` plus a simple pole at each end, the second term from the halves in a and b; the "
                "double poles cancel:",
                (leading - slope).diff(z) / 2 + (1 / z - 1 / (1 - z)) * (leading - slope) / 2,
                (a + b) / (2 * z * (1 - z)),
                shown=r"\tfrac12 (W_0 - y)' + \tfrac12 \Big(\frac1z - \frac1{1 - z}\Big)(W_0 - y)",
            ),
            Step(
                "Arcsine law: mean",
                arcsine.diff(small).subs(small, 0),
                (low + high) / 2,
                shown=r"\langle x\rangle_{\mathrm{arcsine}}",
            ),
            Step(
                "and second moment.",
                arcsine.diff(small, 2).subs(small, 0) / 2,
                (3 * low**2 + 2 * low * high + 3 * high**2) / 8,
                shown=r"\langle x^2\rangle_{\mathrm{arcsine}}",
            ),
            Step(
                "The mean of the overlaps is not corrected: it is r/m at every size.",
                (low + high) / 4 - (low + high) / 4,
                sp.Integer(0),
                shown=r"\tfrac14 (x_- + x_+) - \tfrac12 \langle x\rangle_{\mathrm{arcsine}}",
            ),
            Step(
                "The correction to the second moment is that of the exact one.",
                sp.Limit(exact, m, sp.oo),
                sp.expand(((low**2 + high**2) / 4 - (3 * low**2 + 2 * low * high + 3 * high**2) / 16).subs(edges)),
                (EVALUATE,),
                shown=r"\lim_{m\to\infty} \Big( \langle \mathrm{tr}\, K^2\rangle - d \int x^2\, dF \Big)",
            ),
            Step(
                r"For 1/x, with edges p² and q² (the arcsine mean is 1/(pq)):",
                (1 / wide**2 + 1 / deeper**2) / 4 - 1 / (2 * wide * deeper),
                (deeper - wide) ** 2 / (4 * wide**2 * deeper**2),
                shown=r"\tfrac14 (1/x_- + 1/x_+) - \tfrac12 \langle 1/x\rangle_{\mathrm{arcsine}}",
            ),
            Step(
                r"Since :math:`(q - p)^2 = 4\alpha(1 - \beta)` and :math:`pq = \beta - \alpha` for "
                r":math:`\alpha < \beta`, this too is the correction of the exact mean.",
                sp.Limit((directions * inverse - directions * (1 - alpha) / (beta - alpha)).subs(fractions), m, sp.oo),
                alpha * (1 - beta) / (beta - alpha) ** 2,
                (EVALUATE,),
                shown=r"\lim_{m\to\infty} \Big( \langle \mathrm{tr}\, K^{-1}\rangle - d \int \frac{dF}{x} \Big)",
            ),
        ),
        closed_form=ClosedForm("W_1(z)", form, (z, low, high), conditions),
        sizes="The expansion of the loop equation in 1/m is formal: its existence is taken from the literature.",
        theory=("overlap_cdf", "inverse_overlap_tail", "expected_learned_fraction", "expected_loss"),
        test="tests/test_derivations_vs_theory.py::test_overlap_correction",
        citations=("baisilverstein2004", "collins2005"),
    )
