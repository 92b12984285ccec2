"""Channels that learn: the closed flow of the modes, and one mode under an Oja reader and under two other rules."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, rate
from derivations.core import EVALUATE, EXPAND, RATIONAL, SIMPLIFY, Derivation, Step
from derivations.registry import derivation
from derivations.setting import MATHEMATICAL_SHAPES, W1, W2, WHITENED, P, Q, lam, m, n, t

rho, gamma, s, h, beta = sp.symbols("rho gamma s h beta", positive=True)
ORTHONORMAL = r":math:`PP^\top = I`, which Oja's rule keeps (:doc:`oja_flow`)."


@derivation
def adaptive_modes() -> Derivation:
    """Derive that hidden vectors of the modes and the reader's overlap with them have a flow of their own."""
    d = sp.Symbol("d", integer=True, positive=True)
    U, V, F, C = (
        sp.MatrixSymbol(name, *shape) for name, shape in (("U", (m, d)), ("V", (n, d)), ("F", (d, d)), ("C", (d, d)))
    )
    one = sp.Identity(d)
    E, seen = U * F * V.T, U.T * P.T * P * U
    reader = rho * P * U * C * U.T * (sp.Identity(m) - P.T * P)
    base = {W1: Q * P * E - lam * W1, W2: E * W1.T - lam * W2, P: reader}
    kolen = base | {Q: W1 * E.T * P.T - lam * Q}
    lagging = base | {Q: gamma * (W2.T * P.T - Q)}
    basis = ((U.T * U, one), (V.T * V, one))
    by = (all_sizes(*basis, symmetric=(C,), given=r":math:`U^\top U = V^\top V = I` and symmetric :math:`\Gamma`"),)
    inside = (
        all_sizes(*basis, (W2.T * U * U.T, W2.T), symmetric=(C,), given=r":math:`UU^\top W_2 = W_2` in addition"),
    )
    first, second, third = W1 * V, W2.T * U, Q * P * U
    return Derivation(
        name="adaptive_modes",
        title="The closed flow of the modes behind a reader that learns",
        statement=(
            r"If the weights have nothing outside the task's modes, then :math:`E = UFV^\top` with "
            r":math:`F = S - (W_2^\top U)^\top W_1V`, and the hidden vectors :math:`W_1V`, :math:`W_2^\top U`, "
            r":math:`QPU` change by combinations of each other, with coefficients F, :math:`K = U^\top P^\top PU` and "
            r":math:`\Gamma = FF^\top` (errors) or :math:`S^2` (labels). So the products of these vectors and K have a "
            r"flow of their own, in which no size of the network occurs."
        ),
        assumptions=(WHITENED, ORTHONORMAL, r":math:`W_1 = W_1VV^\top`, :math:`W_2 = UU^\top W_2`; C stands for "
                     r":math:`\Gamma`.", MATHEMATICAL_SHAPES),
        steps=(
            rate("What the reader sees of the modes:", seen, base, rho * (C * seen + seen * C - 2 * seen * C * seen),
                 by, key=True),
            rate("The first layer's vectors,", first, base, third * F - lam * first, by, key=True),
            rate("the readout's,", second, base, first * F.T - lam * second, by, key=True),
            rate("and those of a Kolen-Pollack mirror.", third, kolen,
                 first * F.T * seen + rho * third * C * (one - seen) - lam * third, by, key=True),
            rate("Those of a weight mirror, without decay of Q:", third, lagging,
                 gamma * (second * seen - third) + rho * third * C * (one - seen), inside, key=True),
            Step("An exact mirror's need no equation.", W2.T * P.T * P * U, second * seen, inside, shown="QPU"),
        ),
        sizes="The identities hold for all sizes: both sides expand into the same words in the matrices.",
        theory=("adaptive_modes",),
        test="tests/test_theory_adaptive.py::test_modes_are_those_of_the_network",
        citations=("oja1989", "hanut2025"),
    )  # fmt: skip


@derivation
def adaptive_start() -> Derivation:
    """Derive how a small mode grows while an Oja reader finds it."""
    a0, q0 = sp.symbols("a_0 q_0", positive=True)
    order = sp.Symbol("j", integer=True, nonnegative=True)
    odds = h**2 * sp.exp(2 * rho * s**2 * t)
    overlap = odds / (1 + odds)
    used = (sp.asinh(sp.sqrt(odds)) - sp.asinh(h)) / (rho * s)
    a = a0 * sp.cosh(used) + q0 * sp.sinh(used)
    q = q0 * sp.cosh(used) + a0 * sp.sinh(used)
    x = sp.Symbol("x", positive=True)  # exp(-rho s^2 t)
    root = h / sp.sqrt(1 + h**2)  # of kappa
    late = (sp.asinh(h / x) - sp.asinh(h) + sp.log(x)).rewrite(sp.log)
    ratio = (beta + order) ** 2 / ((1 + 2 * beta + order) * (1 + order))
    rising = sp.gamma(beta + order) / sp.gamma(beta)
    return Derivation(
        name="adaptive_start",
        title="One mode while an Oja reader finds it",
        statement=(
            r"A small mode drives the reader by :math:`\Gamma = s^2`, so that :math:`\kappa/(1 - \kappa) = h^2 "
            r"e^{2\rho s^2 t}` whether it follows labels or errors. Under a Kolen-Pollack mirror first layer and "
            r"mirror grow like hyperbolic functions of :math:`\theta = s\int\sqrt\kappa\,dt`, which is elementary; in "
            r"the end :math:`\theta = st + \ln[2\sqrt\kappa/(1 + \sqrt\kappa)]/(\rho s)`, and :math:`c = a` up to a "
            r"constant. Under an exact mirror the readout obeys :math:`\ddot c = s^2\kappa c`, in :math:`w = "
            r"\kappa/(1 - \kappa)` a hypergeometric equation. Its decaying solution :math:`g = (w/h^2)^{-\beta} "
            r"F(\beta, \beta; 2\beta + 1; -1/w)`, :math:`\beta = 1/(2\rho s)`, projects on the growing one: "
            r":math:`\dot c g - c\dot g` is constant, and in the end :math:`c = e^{st}\,(a_0 g - c_0\dot g/s)/2` with "
            r"g at t = 0. Pfaff's transformation makes :math:`\kappa^\beta F(\beta, \beta + 1; 2\beta + 1; 1 - "
            r"\kappa)` of g there and :math:`-s\kappa^\beta F(\beta, \beta; 2\beta + 1; 1 - \kappa)` of :math:`\dot g`."
        ),
        assumptions=(WHITENED, ORTHONORMAL, r"One mode, :math:`W_1 = a g v^\top`, :math:`W_2 = c u g^\top`, :math:`Q = "
                     r"q g p^\top` with :math:`Pu = \sqrt\kappa\,p`; the mode small; no weight decay, which only takes "
                     r":math:`e^{-\lambda t}` off everything."),
        steps=(
            Step("The reader finds the mode.", overlap.diff(t), 2 * rho * s**2 * overlap * (1 - overlap),
                 shown=r"\dot\kappa", shown_rhs=r"2\rho s^2\kappa(1 - \kappa)", key=True),
            Step("Time as the mode counts it.", used.diff(t), s * sp.sqrt(overlap), shown=r"\dot\theta",
                 shown_rhs=r"s\sqrt\kappa", key=True),
            Step("Kolen-Pollack: the first layer,", a.diff(t), s * sp.sqrt(overlap) * q, shown=r"\dot a",
                 shown_rhs=r"s\sqrt\kappa\,q"),
            Step("and the mirror.", q.diff(t), s * sp.sqrt(overlap) * a, shown=r"\dot q",
                 shown_rhs=r"s\sqrt\kappa\,a"),
            Step(r"What the reader costs, with :math:`x = e^{-\rho s^2 t}`.", sp.Limit(late, x, 0, "+"),
                 sp.log(2 * root / (1 + root)), (EVALUATE,), shown=r"\lim_{t\to\infty} \rho s\,(\theta - st)",
                 shown_rhs=r"\ln\frac{2\sqrt\kappa}{1 + \sqrt\kappa}", key=True),
            Step(r"Exact mirror: in powers :math:`w^{-\beta-j}` with coefficients :math:`(-1)^j f_j` the equation "
                 r":math:`(1 + w)(w\,d/dw)^2 g = \beta^2 w g` asks for the ratio of F's series,",
                 ((beta + order + 1) ** 2 - beta**2) * ratio, (beta + order) ** 2, (RATIONAL,),
                 shown=r"\left((\beta + j + 1)^2 - \beta^2\right) f_{j+1} / f_j", key=True),
            Step(r"and :math:`-w\,dg/dw` has the series of the same function with one parameter raised.",
                 (beta + order) * rising, beta * sp.gamma(beta + 1 + order) / sp.gamma(beta + 1),
                 (SIMPLIFY,), shown=r"(\beta + j)\,(\beta)_j", shown_rhs=r"\beta\,(\beta + 1)_j"),
        ),
        sizes="Scalar; nothing depends on a size.",
        theory=("adaptive_start", "adaptive_half_time"),
        test="tests/test_theory_adaptive.py::test_curve_from_small_starts",
        citations=("oja1989", "hanut2025"),
    )  # fmt: skip


@derivation
def local_mode() -> Derivation:
    """Derive the trajectory of one mode under the synapse-local rule, and its escape from a small start."""
    a0, p0, q0, e, c, y, a, p, q = sp.symbols("a_0 p_0 q_0 e c y a p q", positive=True)
    reader = p0 * sp.cosh(c) + q0 * sp.sinh(c)
    mirror = q0 * sp.cosh(c) + p0 * sp.sinh(c)
    square = a0**2 + (p0**2 + q0**2) * sp.sinh(c) ** 2 + p0 * q0 * sp.sinh(2 * c)
    roots = [sp.sqrt(y + size**2) for size in (a0, q0, p0)]
    decayed = {a: sp.exp(-lam * t) * a, p: sp.exp(-lam * t) * p, q: sp.exp(-lam * t) * q}
    return Derivation(
        name="local_mode",
        title="One mode under the synapse-local rule",
        statement=(
            r"With :math:`e = s - ac` the rule reads :math:`\dot a = qpe`, :math:`\dot c = ae`, :math:`\dot q = ape`, "
            r":math:`\dot p = aqe`. By what the readout has grown all else is known; :math:`\dot c = ae` is then a "
            r"quadrature. While the strength is small :math:`e = s`, and :math:`y = a^2 - a_0^2` reaches infinity "
            r"after :math:`R_F(a_0^2, q_0^2, p_0^2)/s`, :math:`R_F = \tfrac12\int_0^\infty dy\,[(y + a_0^2)(y + q_0^2)"
            r"(y + p_0^2)]^{-1/2}`. Under weight decay: with "
            r":math:`e^{-\lambda t}` taken off, the sizes obey the same equations in :math:`(1 - e^{-\lambda t})"
            r"/\lambda`."
        ),
        assumptions=(WHITENED, r"One mode, :math:`W_1 = a g v^\top`, :math:`W_2 = c u g^\top`, :math:`Q = q g z^\top`, "
                     r":math:`P = p z u^\top`; equal rates. In the first three steps c is what the readout has grown."),
        steps=(
            Step("The reader,", reader.diff(c) * a * e, a * mirror * e, (EXPAND,), shown=r"\dot p",
                 shown_rhs="aqe"),
            Step("the mirror,", mirror.diff(c) * a * e, a * reader * e, (EXPAND,), shown=r"\dot q",
                 shown_rhs="ape"),
            Step("and the first layer, as functions of the readout.", square.diff(c) * a * e / (2 * a),
                 mirror * reader * e, (SIMPLIFY,), shown=r"\dot a", shown_rhs="qpe", key=True),
            Step(r"The square of the rate of :math:`y = a^2 - a_0^2`, by the invariants :math:`a^2 - q^2` and "
                 r":math:`a^2 - p^2`.",
                 ((2 * a * q * p * s) ** 2).subs(dict(zip((a, q, p), roots, strict=True))),
                 4 * s**2 * (y + a0**2) * (y + q0**2) * (y + p0**2), (EXPAND,), shown=r"\dot y^2", key=True),
            Step("Equal sizes are elementary.", sp.Integral((y + a0**2) ** sp.Rational(-3, 2) / 2, (y, 0, sp.oo)),
                 1 / a0, (EVALUATE,), shown="R_F(a_0^2, a_0^2, a_0^2)", key=True),
            Step(r"With decay, :math:`a e^{\lambda t}` and its like obey the equations without, slowed down.",
                 (s * q * p - lam * a).subs(decayed, simultaneous=True) * sp.exp(lam * t) + lam * a,
                 sp.exp(-lam * t) * s * q * p, (SIMPLIFY,), shown=r"\frac{d}{dt}\left(a e^{\lambda t}\right)",
                 shown_rhs=r"e^{-\lambda t}\, s\,(q e^{\lambda t})(p e^{\lambda t})"),
        ),
        sizes="Scalar; nothing depends on a size.",
        theory=("local_time", "local_escape_time"),
        test="tests/test_theory_local.py::test_time_is_that_of_the_network",
        citations=("hanut2025",),
    )  # fmt: skip


@derivation
def normative_turn() -> Derivation:
    """Derive when the channel of the normative rule leaves the modes that it serves."""
    a, c, other, served, waiting = sp.symbols("a_i c_i c_j s_i s_j", positive=True)
    x, y, w, z, dp, dq = sp.symbols("x y w z p q", real=True)
    step, root, grown = sp.Symbol("epsilon"), sp.sqrt(c), sp.Symbol("c", positive=True)
    # modes (i, j), hidden directions (g_i, g_j), one channel; mode i learned and served, mode j waiting
    first = sp.Matrix([[a, step * x], [step * w, 0]])
    readout = sp.Matrix([[c, step * z], [step * y, other]])
    reader = sp.Matrix([[root, step * dp]])
    mirror = sp.Matrix([root, step * dq])
    error = sp.diag(a * c, waiting) - readout * first
    gap = mirror * reader - readout.T
    velocity = {
        "W_1": mirror * reader * error, "W_2": error * first.T, "P": -rho * mirror.T * gap, "Q": -rho * gap * reader.T
    }  # fmt: skip

    def linear(part: str, row: int, column: int) -> sp.Expr:
        return sp.expand(velocity[part][row, column].diff(step).subs(step, 0))

    rates = sp.Matrix([linear("W_1", 0, 1), linear("W_2", 1, 0), linear("P", 0, 1), linear("Q", 1, 0)])
    expected = sp.Matrix(
        [
            waiting * root * dp - c**2 * x,
            waiting * x - a**2 * y - a * other * w,
            rho * (root * y + other * dq - c * dp),
            rho * (root * z + other * dp - c * dq),
        ]
    )
    still = sp.Matrix([linear("W_1", 1, 0), linear("W_2", 0, 1)])
    determinant = rates.jacobian([x, y, dp, dq]).det(method="berkowitz")
    lagging = (served - grown**2) / (2 * rho)  # c - pq to first order in 1 / rho, with a = c there
    rest = sp.Matrix([sum(abs(entry) for entry in part.subs(step, 0)) for part in velocity.values()])
    return Derivation(
        name="normative_turn",
        title="When the normative channel turns",
        statement=(
            r"Mode i is learned and served, :math:`a_ic_i = s_i`; the readout has the size :math:`c_j` on the hidden "
            r"direction of mode j, which the first layer does not feed. Small are what mode j has of the units of "
            r"mode i in the first layer, x, and the readout, y, the reverse, w and z, and the tilts p of the reader "
            r"and q of the mirror. The state is left where the determinant turns negative: for :math:`c_j^2 > c_i^2 "
            r"(1 - s_j^2/s_i^2)`, at any rate. The rate decides how large :math:`c_i` is: the channel lags behind by "
            r":math:`(s - c^2)/(2\rho)`, to first order in :math:`1/\rho`."
        ),
        assumptions=(WHITENED, r"The channel descends :math:`\tfrac12\|QP - W_2^\top\|^2` at the rate :math:`\rho`, "
                     "started from the singular value decomposition; no weight decay."),
        steps=(
            Step("The state is at rest.", rest, sp.zeros(4, 1), (SIMPLIFY,),
                 shown=r"(\|\dot W_1\|, \|\dot W_2\|, \|\dot P\|, \|\dot Q\|)^T"),
            Step("The rates of x, y, p and q, to first order,", rates, expected, (EXPAND,), key=True,
                 shown=r"(\dot x, \dot y, \dot p, \dot q)^T"),
            Step("while w and z stay.", still, sp.zeros(2, 1), (EXPAND,), shown=r"(\dot w, \dot z)^T"),
            Step(r"A growth rate passes through zero where this vanishes:", determinant.subs(a, served / c),
                 rho**2 * served**2 * (c**2 * (1 - waiting**2 / served**2) - other**2), (EXPAND,), key=True,
                 shown=r"\det J"),
            Step(r"The lag obeys :math:`\dot\sigma = 2\rho\sigma(c - \sigma)` for :math:`\sigma = pq`, hence "
                 r":math:`c - \sigma = \dot c/(2\rho c)`; and :math:`\frac{d}{dt}(c^2 - a^2) = 2ae(c - \sigma)`, with "
                 r":math:`\dot c = ae`, adds up to", sp.Integral(2 * lagging, (grown, 0, sp.sqrt(served))),
                 2 * served ** sp.Rational(3, 2) / (3 * rho), (EVALUATE,), shown=r"c_i^2 - a_i^2", key=True),
        ),
        sizes="Two modes and one channel, written out; further modes do not couple to first order.",
        theory=("normative_turn_time",),
        test="tests/test_theory_normative.py::test_threshold_of_the_whole_flow",
        citations=("hanut2025",),
    )  # fmt: skip
