"""What a random channel sees of many directions: the Jacobi law."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, ClosedForm, Derivation, Step
from derivations.registry import derivation

UNIFORM = "P has r orthonormal rows, uniformly random among such matrices, :math:`0 < r < m`."
x = sp.Symbol("x", positive=True)
a, b = sp.symbols("a b", positive=True)
rank, outputs = sp.symbols("r m", positive=True)
alpha, beta = sp.symbols("alpha beta", positive=True)


def _edges() -> tuple[sp.Expr, sp.Expr]:
    """Return the edges of the Jacobi law."""
    low, high = sp.sqrt(alpha * (1 - beta)), sp.sqrt(beta * (1 - alpha))
    return (low - high) ** 2, (low + high) ** 2


def _integrals() -> tuple[Step, ...]:
    """Verify the two elementary integrals behind the law's moments, by an explicit antiderivative."""
    p, q, u = sp.symbols("p q u", positive=True)  # edges p^2 < q^2, x = (p^2 + q^2 u^2) / (1 + u^2)
    place = (p**2 + q**2 * u**2) / (1 + u**2)
    root = (q**2 - p**2) * u / (1 + u**2)  # of (x - p^2)(q^2 - x)
    integrand = root / place * place.diff(u)
    antiderivative = (p**2 + q**2) * sp.atan(u) - 2 * p * q * sp.atan(q * u / p) + (q**2 - p**2) * u / (1 + u**2)
    plain = root * place.diff(u)
    plain_anti = (q**2 - p**2) ** 2 * (sp.atan(u) / 4 + (u**3 - u) / (4 * (1 + u**2) ** 2))
    return (
        Step(
            "Substitute :math:`x = (p^2 + q^2u^2)/(1 + u^2)`, which runs from the lower edge p² to "
            "the upper edge q²; then the root is rational.",
            (place - p**2) * (q**2 - place),
            root**2,
            shown="(x - p^2)(q^2 - x)",
        ),
        Step(
            "The antiderivative of the root over x, in u.",
            antiderivative.diff(u),
            integrand,
            shown=rf"\frac{{d}}{{du}} \left( {sp.latex(antiderivative)} \right)",
        ),
        Step(
            r"So the root over x integrates to :math:`\pi(q - p)^2/2`.",
            sp.limit(antiderivative, u, sp.oo) - sp.limit(antiderivative, u, 0),
            sp.pi * (q - p) ** 2 / 2,
            shown=r"\int_{p^2}^{q^2} \sqrt{(x - p^2)(q^2 - x)} \,\frac{dx}{x}",
        ),
        Step(
            "The antiderivative of the root itself.",
            plain_anti.diff(u),
            plain,
            shown=rf"\frac{{d}}{{du}} \left( {sp.latex(plain_anti)} \right)",
        ),
        Step(
            "So the root integrates to the area of half a disc.",
            sp.limit(plain_anti, u, sp.oo) - sp.limit(plain_anti, u, 0),
            sp.pi * (q**2 - p**2) ** 2 / 8,
            shown=r"\int_{p^2}^{q^2} \sqrt{(x - p^2)(q^2 - x)} \, dx",
        ),
    )


def _law(regime: tuple[sp.Expr, sp.Expr]) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """Return mass, first and second moment of the continuous part, given |alpha - beta| and |1 - alpha - beta|."""
    low, high = _edges()
    near_zero, near_one = regime
    centre = (low + high) / 2
    over_x, over_rest = (
        centre - near_zero,
        1 - centre - near_one,
    )  # each times pi: integrals of root/x and root/(1 - x)
    area = (high - low) ** 2 / 8
    return (over_x + over_rest) / (2 * alpha), over_rest / (2 * alpha), (over_rest - area) / (2 * alpha)


@derivation
def overlap_spectrum() -> Derivation:
    """Verify mass, atoms and first two moments of the Jacobi law of the overlaps of many directions."""
    low, high = _edges()
    form = sp.sqrt((x - low) * (high - x)) / (2 * sp.pi * alpha * x * (1 - x))
    regimes = {
        r"\alpha \leq \beta,\ \alpha + \beta \leq 1": (beta - alpha, 1 - alpha - beta),
        r"\alpha > \beta,\ \alpha + \beta \leq 1": (alpha - beta, 1 - alpha - beta),
        r"\alpha \leq \beta,\ \alpha + \beta > 1": (beta - alpha, alpha + beta - 1),
        r"\alpha > \beta,\ \alpha + \beta > 1": (alpha - beta, alpha + beta - 1),
    }
    steps: list[Step] = [
        *_integrals(),
        Step("The product of the edges.", low * high, (alpha - beta) ** 2, shown="x_- x_+", key=True),
        Step(
            r"The product of their distances from one (by the symmetry :math:`x \to 1 - x`, "
            r":math:`\beta \to 1 - \beta`).",
            (1 - low) * (1 - high),
            (1 - alpha - beta) ** 2,
            shown="(1 - x_-)(1 - x_+)",
            key=True,
        ),
        Step(
            "The centre of the edges.",
            (low + high) / 2,
            alpha * (1 - beta) + beta * (1 - alpha),
            shown="(x_- + x_+)/2",
        ),
    ]
    for words, regime in regimes.items():
        mass, first, second = _law(regime)
        at_zero = 1 - beta / alpha if regime[0] == alpha - beta else sp.Integer(0)
        at_one = (alpha + beta - 1) / alpha if regime[1] == alpha + beta - 1 else sp.Integer(0)
        case = f"For :math:`{words}`"
        steps += [
            Step(
                f"{case}: continuous part and atoms have total mass one.",
                mass + at_zero + at_one,
                sp.Integer(1),
                shown=r"\int dF",
            ),
            Step(f"{case}: the mean is that of the Beta law.", first + at_one, beta, shown=r"\int x\, dF"),
            Step(
                f"{case}: the second moment.",
                second + at_one,
                beta * (alpha + beta - alpha * beta),
                shown=r"\int x^2\, dF",
            ),
        ]
    directions = sp.Symbol("d", positive=True)
    own = rank * (rank + 2) / (outputs * (outputs + 2))
    other = rank * (outputs - rank) / (outputs * (outputs + 2) * (outputs - 1))
    finite = own + (directions - 1) * other
    fractions = {rank: beta * outputs, directions: alpha * outputs}
    steps += [
        Step(
            r"At finite size, with M a projector: :math:`\sum_j M_{ij}^2 = M_{ii}` fixes the "
            r"off-diagonal second moment.",
            own + (outputs - 1) * other,
            rank / outputs,
            shown=r"\langle M_{ii}^2 \rangle + (m - 1) \langle M_{ij}^2 \rangle",
        ),
        Step(
            "The exact second moment at finite m tends to the law's.",
            sp.Limit(finite.subs(fractions), outputs, sp.oo),
            beta * (alpha + beta - alpha * beta),
            (EVALUATE,),
            shown=r"\lim_{m \to \infty} \frac{1}{d} \langle \mathrm{tr}\, K^2 \rangle",
            key=True,
        ),
    ]

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        half = sp.Rational(1, 2)
        mirrored = candidate.subs(x, 1 - x).subs(beta, 1 - beta)
        u = sp.Symbol("u", positive=True)
        arcsine = candidate.subs({alpha: half, beta: half}).subs(x, 1 / (1 + u**2))  # the edges are 0 and 1
        return (
            Step(
                "Squared, the density is the square of the stated one (it is positive).",
                candidate**2 * (x * (1 - x) * alpha) ** 2 * 4 * sp.pi**2,
                (x - low) * (high - x),
                shown=r"(2\pi\alpha x(1 - x) f(x))^2",
                shown_rhs="(x - x_-)(x_+ - x)",
            ),
            Step(
                "Exchanging what is seen and what is not seen mirrors the density.",
                mirrored**2,
                candidate**2,
                shown=r"f_{1-\beta}(1 - x)^2",
                shown_rhs=r"f_\beta(x)^2",
            ),
            Step(
                r"For half the outputs and half the directions it is the arcsine law "
                r":math:`1/(\pi\sqrt{x(1 - x)})`; at :math:`x = 1/(1 + u^2)`:",
                arcsine,
                (1 + u**2) / (sp.pi * u),
                shown="f(x)",
            ),
        )

    return Derivation(
        name="overlap_spectrum",
        title="What a random channel sees of many directions",
        statement=(
            r"For d orthonormal directions U the eigenvalues of :math:`K = U^\top P^\top P U` "
            r"follow the Jacobi (MANOVA) law as :math:`m \to \infty` with :math:`\alpha = d/m` and "
            r":math:`\beta = r/m`: the density below between :math:`x_\pm = (\sqrt{\alpha(1-\beta)} "
            r"\pm \sqrt{\beta(1-\alpha)})^2`, an atom of mass :math:`(1 - \beta/\alpha)_+` at 0 and "
            r"one of mass "
            r":math:`(\alpha + \beta - 1)_+/\alpha` at 1. The limit law is quoted from the "
            r"literature; verified here are its total mass and first two moments, the latter "
            r"against exact moments at finite m."
        ),
        assumptions=(UNIFORM, r":math:`m \to \infty` at fixed d/m and r/m; corrections are of order 1/m."),
        steps=tuple(steps),
        closed_form=ClosedForm("f(x)", form, (x, beta, alpha), conditions),
        sizes=r"Scalar identities in :math:`\alpha` and :math:`\beta`; that the limit law is this one "
        r"is quoted, not derived.",
        theory=("overlap_density", "overlap_atoms"),
        test="tests/test_derivations_vs_theory.py::test_overlap_density_and_atoms",
        citations=("wachter1980", "collins2005", "absil2006"),
    )
