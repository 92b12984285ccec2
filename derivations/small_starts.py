"""Small starts of any imbalance: what grows, what decays, and what an imbalance does to either."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes
from derivations.core import EXPAND, SIMPLIFY, Derivation, Step
from derivations.registry import derivation
from derivations.setting import ALIGNED, MATHEMATICAL_SHAPES, W1, W2, WHITENED, A, P, k, n, r

d, o = sp.symbols("d o", integer=True, positive=True)
U, V, S = sp.MatrixSymbol("U", r, d), sp.MatrixSymbol("V", n, d), sp.MatrixSymbol("S", d, d)
N = sp.MatrixSymbol("N", n, o)
p, q = sp.MatrixSymbol("p", k, d), sp.MatrixSymbol("q", k, d)
g, G, C = sp.MatrixSymbol("g", d, d), sp.MatrixSymbol("G", k, k), sp.MatrixSymbol("C", k, k)
MODES = all_sizes(
    (P * A * V, U * S),
    (A.T * P.T * U, V * S),
    (P * A * N, sp.ZeroMatrix(r, o)),
    symmetric=(S,),
    given=":math:`PAV = US`, :math:`A^\\top P^\\top U = VS`, :math:`PAN = 0`",
)
SYMMETRIC = all_sizes(symmetric=(S, G, C, g))


@derivation
def small_starts() -> Derivation:
    """Derive the flow of what grows and what decays, and how an imbalance enters."""
    first, second = W2.T * P.T * P * (A - W2 * W1), (A - W2 * W1) * W1.T
    seen = W2.T * P.T * P * W2
    mean, imbalance = (W1 * W1.T + seen) / 2, W1 * W1.T - seen
    growing, decaying = (W1 * V + W2.T * P.T * U) / 2, (W1 * V - W2.T * P.T * U) / 2
    upward = p * S - G * p + C * q / 2
    a, b, root, s, mu, x, x0, z = sp.symbols("a b q s mu x x_0 z", positive=True)
    advance = (-1 / x + 1 / (1 - x) + 2 * sp.log(x / (1 - x))) / (16 * root**2 * s**2)  # w, up to a constant

    def pace(y: sp.Expr) -> sp.Expr:
        return 2 * root * s * y * (1 - y)

    balanced = S * g + g * S - 2 * g * g
    return Derivation(
        name="small_starts",
        title="Small starts of any imbalance",
        statement=(
            r"Let the start be of scale :math:`\varepsilon` and :math:`PA = USV^\top`. Write p for its growing "
            r"part :math:`\tfrac12(W_1V + W_2^\top P^\top U)`, q for the decaying one, h for what of both layers "
            r"belongs to no mode: inputs N with :math:`PAN = 0`, and outputs likewise. The imbalance :math:`C = "
            r"W_1W_1^\top - W_2^\top MW_2` is conserved, hence :math:`O(\varepsilon^2)` for ever, and makes of p "
            r"only q and of q only p. Without it the flow is solved in closed form from any start."
            "\n\n"
            r"*The closed form is right to* :math:`O(\varepsilon^2)`, up to logarithms, for times far below "
            r":math:`\varepsilon^{-2}`, if :math:`p(0)/\varepsilon` has full column rank. (i) G is not negative, "
            r"so its propagator :math:`\Phi` contracts: :math:`q = \Phi q_0e^{-St} + O(\varepsilon^2)` and "
            r":math:`h = \Phi h_0 + O(\varepsilon^3t)`, as p is bounded. Column by column, with :math:`D_i = "
            r"\min(\varepsilon e^{\sigma_it}, 1)`, :math:`|p_i| = O(D_i)` and :math:`|q_i| = O(\varepsilon "
            r"e^{-\sigma_it} + \varepsilon^2D_i)`. (ii) Let :math:`\tilde g` solve the equation of :math:`g = "
            r"p^\top p` from the same start with :math:`G = pp^\top` and :math:`C = 0`: it is that of the "
            r"growing part. It lies between multiples of :math:`D^2`, so that :math:`q^\top q = O(e^{-2\sigma t} "
            r"+ \varepsilon^4)\,g` with the smallest :math:`\sigma`. What the equation of g has besides, "
            r":math:`-2p^\top(qq^\top + \tfrac12hh^\top)p + \tfrac12(p^\top Cq + q^\top Cp)`, then lies between "
            r":math:`-\nu g` and :math:`\nu g` with :math:`\int\!\nu\,\mathrm dt = O(\varepsilon^2(1 + t))`. "
            r"Riccati equations keep order, so :math:`(1 - O(\varepsilon^2(1 + t)))\,\tilde g \le g \le (1 + "
            r"O(\varepsilon^2))\,\tilde g`; without h there is no t in it. (iii) A small disturbance of g is "
            r"carried on by :math:`\tilde g(t)e^{-S(t - t')}\tilde g(t')^{-1}`, which is bounded in units of D. "
            r"In these units the disturbances, by C, of the products of p, q, h and :math:`W_2`, hence of the "
            r"map, are :math:`O(\varepsilon^2)` and are not amplified."
            "\n\n"
            r"*The growing part alone* leaves out h, and with q the antisymmetric :math:`p^\top q - q^\top p`. "
            r"In the linear phase :math:`p_i^\top q_j` grows as :math:`\varepsilon^2e^{(\sigma_i - \sigma_j)t}` "
            r"until mode i is learned, so to :math:`\varepsilon^{1 + \sigma_j/\sigma_i}`, and then decays at "
            r":math:`\sigma_i + \sigma_j`."
        ),
        assumptions=(WHITENED, ALIGNED, r":math:`\lambda = 0`; S is diagonal and positive.", MATHEMATICAL_SHAPES),
        steps=(
            Step(
                r"What grows, with :math:`G = \tfrac12(W_1W_1^\top + W_2^\top MW_2)`,",
                (first * V + second.T * P.T * U) / 2,
                growing * S - mean * growing + imbalance * decaying / 2,
                (MODES,),
                key=True,
                shown=r"\dot p",
                shown_rhs=r"pS - Gp + \tfrac12Cq",
            ),
            Step(
                "what decays,",
                (first * V - second.T * P.T * U) / 2,
                -decaying * S - mean * decaying + imbalance * growing / 2,
                (MODES,),
                key=True,
                shown=r"\dot q",
                shown_rhs=r"-qS - Gq + \tfrac12Cp",
            ),
            Step(
                "inputs out of the channel's reach,",
                first * N,
                -mean * W1 * N + imbalance * W1 * N / 2,
                (MODES,),
                shown=r"\frac{d}{dt}W_1N",
                shown_rhs=r"-GW_1N + \tfrac12CW_1N",
            ),
            Step(
                "and the readout.",
                second,
                A * W1.T - W2 * mean - W2 * imbalance / 2,
                (MODES,),
                shown=r"\dot W_2",
                shown_rhs=r"AW_1^\top - W_2G - \tfrac12W_2C",
            ),
            Step(
                "What the channel sees of the modes: strengths of modes are symmetric in it.",
                (growing - decaying).T * (growing + decaying),
                growing.T * growing - decaying.T * decaying + growing.T * decaying - decaying.T * growing,
                (MODES,),
                key=True,
                shown=r"U^\top PW_2W_1V",
                shown_rhs=r"p^\top p - q^\top q + p^\top q - q^\top p",
            ),
            Step(
                "The symmetric part of what grows.",
                upward.T * p + p.T * upward,
                S * p.T * p + p.T * p * S - 2 * p.T * G * p + (p.T * C * q + q.T * C * p) / 2,
                (SYMMETRIC,),
                shown=r"\frac{d}{dt}\,p^\top p",
            ),
            Step(
                r"Disturbances of :math:`\dot g = Sg + gS - 2g^2` are carried on by :math:`S - 2g`, which is solved by "
                r":math:`ge^{-St}`.",
                balanced - g * S,
                (S - 2 * g) * g,
                (SYMMETRIC,),
                shown=r"\Big(\frac{d}{dt}\,ge^{-St}\Big)e^{St}",
            ),
            Step(
                r"A single mode, :math:`z = 4\sqrt\kappa\,s\,y` in the letters of :doc:`unbalanced_mode`:",
                (2 * root * s * z - z**2 / 2 + mu**2 / 2) / (4 * root * s),
                pace(z / (4 * root * s)) + mu**2 / (8 * root * s),
                (EXPAND,),
                shown=r"\dot y",
                shown_rhs=r"2\sqrt\kappa\,s\,y(1 - y) + \frac{\mu^2}{8\sqrt\kappa\,s}",
            ),
            Step(
                r"With :math:`y = x + \mu^2x(1 - x)\,w` about the growing part x, to first order in :math:`\mu^2`,",
                (x * (1 - x) * advance).diff(x) * pace(x) - pace(x).diff(x) * x * (1 - x) * advance,
                1 / (8 * root * s),
                (SIMPLIFY,),
                shown=r"\frac{d}{dt}\big[x(1 - x)w\big] - 2\sqrt\kappa\,s\,(1 - 2x)\,x(1 - x)w",
            ),
            Step(
                r"with w vanishing at the start :math:`x_0`, and soon constant if that is small,",
                sp.limit(x0 * (advance.subs(x, sp.Rational(1, 2)) - advance.subs(x, x0)), x0, 0, "+"),
                1 / (16 * root**2 * s**2),
                shown=r"\lim_{x_0\to0} x_0\,w",
            ),
            Step(
                r"so that :math:`\tilde c - c = (a - \sqrt\kappa\,b)^2/(4\sqrt\kappa)\cdot[x_0/x - x(1 - x)]`, with a "
                "and b at the start:",
                (a**2 - root**2 * b**2) ** 2 / (a + root * b) ** 2,
                (a - root * b) ** 2,
                (SIMPLIFY,),
                key=True,
                shown=r"\mu^2/z_0",
                shown_rhs=r"(a - \sqrt\kappa\,b)^2",
            ),
        ),
        sizes="The matrix identities hold for all sizes.",
        theory=("growing_part", "small_start_map"),
        test="tests/test_theory_unbalanced.py::test_small_start_map_is_of_second_order_in_everything",
        citations=("braun2022", "hanut2025"),
    )
