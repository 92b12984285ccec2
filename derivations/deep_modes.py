"""One mode of a deep network behind a channel at every layer: its equations, its clock, its loss by weight decay."""

from __future__ import annotations

from itertools import pairwise

import sympy as sp

from derivations.algebra import all_sizes
from derivations.core import EVALUATE, RATIONAL, SIMPLIFY, ClosedForm, Derivation, Rewriting, Step
from derivations.deep import ASSUMPTIONS
from derivations.registry import derivation
from derivations.setting import lam

ONE = (
    *ASSUMPTIONS,
    r"Aligned mirrors, one task direction :math:`A = s\,uv^\top`, and :math:`W_l = a_l\,g_lg_{l-1}^\top` with unit "
    r"vectors, :math:`g_0 = v` and :math:`g_L = u`; :math:`\kappa_j = g_{j+1}^\top M_jg_{j+1}`.",
)
POWERS = Rewriting(
    "by separating the powers of products of positive numbers and simplifying",
    lambda expr: sp.simplify(sp.expand(sp.expand_power_base(sp.simplify(expr), force=True), power_exp=True)),
)
ANY_DEPTH = "Written out at depth 4; the argument is the same at any depth. Scalar; nothing depends on a width."
DEPTH = 4
s, theta = sp.symbols("s theta", positive=True)
c = sp.Symbol("c", positive=True)
strengths = sp.symbols(f"a_1:{DEPTH + 1}", positive=True)
shares = sp.symbols(f"kappa_1:{DEPTH}", positive=True)
gains = tuple(sp.Mul(*shares[layer:]) for layer in range(DEPTH))  # K_l


def _velocities(decay: sp.Expr) -> dict[sp.Symbol, sp.Expr]:
    """Return the equations of motion of the layers' strengths."""
    product = sp.Mul(*strengths)
    return {a: gain * product / a * (s - product) - decay * a for a, gain in zip(strengths, gains, strict=True)}


def _rate(quantity: sp.Expr, decay: sp.Expr) -> sp.Expr:
    return sum(quantity.diff(a) * velocity for a, velocity in _velocities(decay).items())


@derivation
def deep_mode() -> Derivation:
    """Derive the equations of a mode in a network of four layers, what they conserve and the balanced mode."""
    widths = sp.symbols(f"n_0:{DEPTH + 1}", integer=True, positive=True)
    names = [f"g_{i}" for i in range(DEPTH + 1)]
    vectors = [sp.MatrixSymbol(name, width, 1) for name, width in zip(names, widths, strict=True)]
    metrics = [sp.MatrixSymbol(f"M_{j}", widths[j + 1], widths[j + 1]) for j in range(1, DEPTH)]
    identity = sp.Identity(1)
    relations = [(g.T * g, identity) for g in vectors]
    relations += [
        (vectors[j + 2].T * metric * vectors[j + 2], shares[j] * identity) for j, metric in enumerate(metrics)
    ]
    given = r":math:`g_l^\top g_l = 1` and :math:`g_{j+1}^\top M_jg_{j+1} = \kappa_j`"
    proof = (all_sizes(*relations, symmetric=metrics, given=given),)
    weights = [a * above * below.T for a, below, above in zip(strengths, vectors, vectors[1:], strict=False)]
    error = (s - sp.Mul(*strengths)) * vectors[-1] * vectors[0].T
    carried = [error]
    for weight, metric in zip(reversed(weights), reversed(metrics), strict=False):
        carried.insert(0, weight.T * metric * carried[0])
    below = [sp.Identity(widths[0])]
    for weight in weights[:-1]:
        below.append(weight * below[-1])
    velocities = _velocities(lam)
    steps = [
        Step(
            f"Layer {i + 1} keeps its directions" + ("; the equation of its strength follows." if i == 0 else "."),
            carried[i] * below[i].T - lam * weights[i],
            velocities[a] * vectors[i + 1] * vectors[i].T,
            proof,
            key=i == 0,
            shown=rf"\dot W_{i + 1}",
        )
        for i, a in enumerate(strengths)
    ]
    for i, (lower, upper) in enumerate(pairwise(strengths)):
        balance = lower**2 - shares[i] * upper**2
        steps.append(
            Step(
                f"The imbalance of layers {i + 1} and {i + 2} only decays.",
                _rate(balance, lam),
                -2 * lam * balance,
                (RATIONAL,),
                key=i == 0,
                shown=rf"\frac{{d}}{{dt}}\left({sp.latex(balance)}\right)",
            )
        )
    unbalanced = [
        _rate(a**2, sp.Integer(0)) / gain / (2 * sp.Mul(*strengths) * (s - sp.Mul(*strengths)))
        for a, gain in zip(strengths, gains, strict=True)
    ]
    for i, pace in enumerate(unbalanced):
        steps.append(
            Step(
                rf"Without decay :math:`a_{i + 1}^2/K_{i + 1}` grows at the common rate "
                rf":math:`\dot\theta = 2c(s - c)`, with :math:`K_{i + 1}` the product of the shares from "
                rf":math:`\kappa_{i + 1}` on, so that time is one quadrature.",
                pace,
                sp.Integer(1),
                (RATIONAL,),
                shown=rf"\frac{{1}}{{\dot\theta}}\,\frac{{d}}{{dt}}\,\frac{{a_{i + 1}^2}}{{K_{i + 1}}}",
            )
        )
    top = (c / sp.Mul(*(share ** sp.Rational(j, 2) for j, share in enumerate(shares, 1)))) ** sp.Rational(1, DEPTH)
    balanced = {a: sp.sqrt(gain) * top for a, gain in zip(strengths, gains, strict=True)}
    clock = sp.Mul(*(share ** sp.Rational(j, DEPTH) for j, share in enumerate(shares, 1)))
    power = 2 - sp.Rational(2, DEPTH)
    steps += [
        Step(
            "A balanced mode has its strength as the product of its layers.",
            sp.Mul(*(balanced[a] for a in strengths)),
            c,
            (SIMPLIFY,),
            shown=r"\prod_l a_l",
        ),
        Step(
            r"Its equation is that of backpropagation with another clock.",
            sp.expand(_rate(sp.Mul(*strengths), lam)).subs(balanced, simultaneous=True),
            DEPTH * clock * c**power * (s - c) - DEPTH * lam * c,
            (SIMPLIFY,),
            key=True,
            shown=r"\dot c",
        ),
    ]
    return Derivation(
        name="deep_mode",
        title="One mode through the channels of a deep network",
        statement=(
            "A mode in a deep network with a channel at every layer obeys one equation per layer. Imbalances decay, "
            r"and a balanced mode is slowed by :math:`\prod_j\kappa_j^{-j/L}`: most by the channel at the output, "
            "least by the lowest one."
        ),
        assumptions=ONE,
        steps=tuple(steps),
        sizes="The reduction holds for all widths and metrics. " + ANY_DEPTH,
        theory=("deep_mode", "deep_time", "deep_slowdown", "deep_balanced_layers"),
        test="tests/test_theory_deep.py::test_layers_follow_their_equations",
        citations=("saxe2013", "hanut2025"),
    )


@derivation
def deep_balanced_time() -> Derivation:
    """Derive the time to a strength of a balanced mode in three layers."""
    c0, clock, y = sp.symbols("c_0 Gamma y", positive=True)
    depth = sp.Integer(3)
    root, cube = sp.sqrt(3), sp.Rational(1, 3)

    def primitive(share: sp.Expr) -> sp.Expr:
        z = share**cube
        real_part = -sp.log(1 - z) + sp.log(1 + z + z**2) / 2
        return -3 * share**-cube + real_part - root * sp.atan((2 * z + 1) / root)

    form = (primitive(c / s) - primitive(c0 / s)) / (depth * clock * s ** sp.Rational(4, 3))

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It is the inverse of the equation of motion.",
                candidate.diff(c) * depth * clock * c ** sp.Rational(4, 3) * (s - c),
                sp.Integer(1),
                (SIMPLIFY,),
                key=True,
                shown=r"\dot c\,\frac{dt}{dc}",
            ),
            Step("It starts at the given strength.", candidate.subs(c, c0), sp.Integer(0), shown="t(c_0)"),
            Step(
                "From small starts the time is algebraic in the start.",
                sp.Limit(candidate * c0**cube * clock * s, c0, 0, "+"),
                sp.Integer(1),
                (EVALUATE,),
                key=True,
                shown=r"\lim_{c_0 \to 0} \Gamma s\,c_0^{1/3}\,t",
            ),
        )

    z = sp.Symbol("z", positive=True)
    return Derivation(
        name="deep_balanced_time",
        title="Learning time of a balanced mode in three layers",
        statement=r"The time is elementary; the channels enter through :math:`\Gamma = \kappa_1^{1/3}\kappa_2^{2/3}`.",
        assumptions=(*ONE, r"L = 3, :math:`\lambda = 0`, balanced start of strength :math:`c_0 < s`."),
        steps=(
            Step(
                r"Its equation, with :math:`y = c/s = z^3`, is a rational function of z.",
                (1 / (y ** sp.Rational(4, 3) * (1 - y))).subs(y, z**3) * 3 * z**2,
                3 / (z**2 * (1 - z**3)),
                (SIMPLIFY,),
                shown=r"\frac{1}{y^{4/3}(1 - y)}\frac{dy}{dz}",
            ),
        ),
        closed_form=ClosedForm("t(c)", form, (c, s, c0, clock), conditions),
        sizes="Scalar; the same partial fractions at any depth give a sum over the L-th roots of unity.",
        theory=("deep_balanced_time",),
        test="tests/test_derivations_vs_theory.py::test_deep_balanced_time",
        citations=("saxe2013",),
    )


@derivation
def deep_critical_decay() -> Derivation:
    """Derive at which weight decay a deep network loses a mode, at any depth."""
    extra, clock, share = sp.symbols("h Gamma q", positive=True)  # L = h + 2
    depth = extra + 2
    power = 1 - 2 / depth
    best = (depth - 2) / (2 * depth - 2)  # as a share of s
    form = clock * s ** (1 + power) * depth / (2 * depth - 2) * ((depth - 2) / (2 * depth - 2)) ** power
    holding = clock * c**power * (s - c)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "It is the decay that is held at that strength.",
                holding.subs(c, s * share).subs(share, best),
                candidate,
                (POWERS,),
                key=True,
                shown=r"\left.\Gamma c^{1-2/L}(s - c)\right|_{c = s(L-2)/(2L-2)}",
                shown_rhs=r"\lambda_c",
            ),
            Step(
                "Two layers: the threshold of a single mode.",
                sp.Limit(candidate, extra, 0, "+"),
                clock * s,
                (EVALUATE,),
                shown=r"\lim_{L \to 2} \lambda_c",
            ),
        )

    return Derivation(
        name="deep_critical_decay",
        title="At which weight decay a deep network loses a mode",
        statement=(
            r"A balanced mode at rest solves :math:`\Gamma c^{1-2/L}(s - c) = \lambda`: two points above the origin, "
            "which meet at the critical decay. There a mode of a deep network is lost at once, from a finite strength."
        ),
        assumptions=(*ONE, "Weight decay; every flow then becomes balanced."),
        steps=(
            Step(
                "The decay that can be held is largest at one strength.",
                sp.diff(holding, c).subs(c, s * share).subs(share, best),
                sp.Integer(0),
                (SIMPLIFY,),
                key=True,
                shown=r"\left.\frac{d}{dc}\,\Gamma c^{1-2/L}(s - c)\right|_{c = s(L-2)/(2L-2)}",
            ),
        ),
        closed_form=ClosedForm(r"\lambda_c", form, (extra, s, clock), conditions),
        sizes="Scalar; for all depths, with h = L - 2.",
        theory=("deep_critical_decay", "deep_rest_points"),
        test="tests/test_derivations_vs_theory.py::test_deep_critical_decay",
        citations=("hanut2025",),
    )
