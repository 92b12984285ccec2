"""When a reader that follows the errors turns."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes, at_sizes, rate
from derivations.core import EVALUATE, EXPAND, SIMPLIFY, Derivation, Step
from derivations.registry import derivation
from derivations.setting import (
    MATHEMATICAL_SHAPES,
    SIZES,
    W1,
    W2,
    WHITENED,
    E,
    P,
    Q,
    k,
    lam,
    m,
    n,
    r,
)

x, s = sp.symbols("x s", positive=True)


def reader_flow(rho: sp.Expr) -> dict:
    """Return the flow with an Oja reader on errors, C = E E^T, and the mirror Q as it stands, without weight decay."""
    return {
        W1: Q * P * E,
        W2: E * W1.T,
        P: rho * P * E * E.T * (sp.Identity(m) - P.T * P),
        E: -(E * W1.T) * W1 - W2 * (Q * P * E),
    }


def _hidden_state(rho: sp.Expr, decay: sp.Expr = sp.S.Zero, noise: tuple = (0, 0)) -> tuple[sp.Matrix, sp.Matrix]:
    """Return velocity and Jacobian of the whole flow where mode 1 is learned and mode 2 hidden.

    Sizes n = m = 2 and k = r = 1; Kolen-Pollack mirror; decay of W1, W2 and Q; `noise` are the variances of label noise
    along the two outputs. Variables in the order W1, W2, P, Q.
    """
    s1, s2 = sp.symbols("s_1 s_2", positive=True)
    a, b, p = (sp.Matrix(1, 2, sp.symbols(f"{c}_1:3")) for c in "abp")
    q = sp.Symbol("q")
    error = sp.diag(s1, s2) - b.T * a
    covariance = error * error.T + sp.diag(*noise)
    velocity = sp.Matrix(
        [
            *(q * p * error - decay * a),
            *(error * a.T - decay * b.T),
            *(rho * p * covariance * (sp.eye(2) - p.T * p)),
            (a * error.T * p.T)[0, 0] - decay * q,
        ]
    )
    strength = sp.sqrt(s1 - decay)
    variables = [*a, *b, *p, q]
    point = dict(zip(variables, [strength, 0, strength, 0, 1, 0, strength], strict=True))
    return velocity.subs(point), velocity.jacobian(variables).subs(point)


@derivation
def turning_condition() -> Derivation:
    """Derive when an error-driven reader leaves a state in which it sees no error: condition (4)."""
    rho, mu, e2 = sp.symbols("rho mu e", positive=True)
    s1, s2 = sp.symbols("s_1 s_2", positive=True)
    flow = reader_flow(rho)
    visible = P * E
    exact = rho * visible * E.T * E - (P * W2 * Q) * visible - visible * W1.T * W1 - rho * visible * visible.T * visible
    still, jacobian = _hidden_state(rho)
    u, y = sp.MatrixSymbol("u", r, 1), sp.MatrixSymbol("y", n, 1)
    direction = u * y.T
    eigen = all_sizes(
        (E.T * E * y, e2**2 * y),
        (W1 * y, sp.ZeroMatrix(k, 1)),
        (P * W2 * Q * u, mu * u),
        given=r":math:`E^\top E\, y = e^2 y`, :math:`W_1 y = 0` and :math:`(PW_2Q) u = \mu u`",
    )
    off = all_sizes(
        (E * y, sp.ZeroMatrix(m, 1)),
        (W1.T * W1 * y, e2**2 * y),
        (P * W2 * Q * u, mu * u),
        given=r":math:`E y = 0`, :math:`W_1^\top W_1\, y = w^2 y` (written e) and :math:`(PW_2Q) u = \mu u`",
    )
    characteristic = (x * sp.eye(7) - jacobian).det(method="berkowitz")
    small = at_sizes({**SIZES, n: 2})
    return Derivation(
        name="turning_condition",
        title="When an error-driven reader turns",
        statement=(
            r"The visible error :math:`v = PE` of a reader that follows the errors (Oja with "
            r":math:`C = EE^\top`) obeys an equation that is exact and closed but for slow "
            r"coefficients. At a point with "
            r":math:`PE = 0` and :math:`EW_1^\top = 0` its linear part grows if and only if "
            r":math:`\rho\lVert E\rVert_2^2 > \min \mathrm{Re}\,\mathrm{eig}(PW_2Q)`. "
            r"On the top r modes with balanced weights and an aligned mirror this reads :math:`\rho "
            r"> s_r / s_{r+1}^2`."
        ),
        assumptions=(
            WHITENED,
            r":math:`\lambda = 0`; W1 and W2 at rate 1, P at rate :math:`\rho`; any mirror Q (its "
            r"own motion enters at second order).",
            "First order in the visible error; at eigenvalue zero the linear part decides nothing.",
        ),
        steps=(
            rate(
                "The equation of the visible error, without approximation.",
                visible,
                flow,
                exact,
                (all_sizes(), small),
                key=True,
            ),
            Step(
                r"Its linear part, with E, W and PW2Q at the point: a direction :math:`v = uy^\top` "
                r"with y among the inputs of the hidden error grows at the rate :math:`\rho e^2 - \mu`.",
                rho * direction * E.T * E - (P * W2 * Q) * direction - direction * W1.T * W1,
                (rho * e2**2 - mu) * direction,
                (eigen,),
                key=True,
                shown=r"\rho v E^T E - (P W_2 Q) v - v W_1^T W_1",
            ),
            Step(
                r"A direction with y among the inputs that are in use has the rate :math:`-w^2 - \mu`: "
                r"it does not help (:math:`EW_1^\top = 0` keeps the two apart).",
                rho * direction * E.T * E - (P * W2 * Q) * direction - direction * W1.T * W1,
                (-(e2**2) - mu) * direction,
                (off,),
                shown=r"\rho v E^T E - (P W_2 Q) v - v W_1^T W_1",
            ),
            Step(
                "Two modes, one hidden unit, one channel on the stronger mode, balanced weights, "
                "Kolen-Pollack mirror: the flow stands still although mode 2 is not learned.",
                still,
                sp.zeros(7, 1),
                (EXPAND,),
                shown=r"(\dot W_1, \dot W_2, \dot P, \dot Q)^T",
            ),
            Step(
                r"The Jacobian of the whole flow in its seven variables has the predicted rate "
                r":math:`\rho s_2^2 - s_1`, and no other can be positive.",
                characteristic,
                x**4 * (x + s1) * (x + 2 * s1) * (x - (rho * s2**2 - s1)),
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J)",
            ),
        ),
        sizes="The equation of the visible error for all sizes, and at the explicit size named in "
        "the step. The full Jacobian at n = m = 2, k = r = 1. " + MATHEMATICAL_SHAPES,
        theory=("critical_reader_rate", "critical_reader_rate_at"),
        test="tests/test_theory_turning.py::test_general_condition_at_random_states",
        citations=("hanut2025", "oja1982", "kolenpollack1994"),
    )


@derivation
def turning_with_decay() -> Derivation:
    """Derive when an error-driven reader turns if weights decay and labels are noisy: three variables, exactly."""
    rho, w = sp.symbols("rho w", positive=True)
    a, b = sp.symbols("s_1 s_2", positive=True)
    delta, sigma = sp.symbols("Delta sigma", real=True)
    still, jacobian = _hidden_state(rho, lam, (sigma**2, sigma**2 + delta))
    hidden, learned = [1, 3, 5], [0, 2, 4, 6]  # what belongs to mode 2, and to mode 1
    block = jacobian.extract(hidden, hidden)
    own = jacobian.extract(learned, learned)
    apart = sp.Matrix([*jacobian.extract(hidden, learned), *jacobian.extract(learned, hidden)])
    pull, kept = b**2 - lam**2 + delta, lam**2 * (a**2 - b**2) - a**2 * delta
    slope = 2 * a * pull - (a - lam) * b**2
    c2, c1, c0 = 2 * a - rho * pull, a**2 - rho * slope, rho * kept
    linear = 2 * a * slope + a**2 * pull + kept
    inverse = (linear + sp.sqrt(linear**2 - 8 * a**3 * pull * slope)) / (4 * a**3)
    x0, x1, x2 = sp.symbols("c_0 c_1 c_2")
    bare = {delta: 0}
    return Derivation(
        name="turning_with_decay",
        title="When the reader turns if weights decay and labels are noisy",
        statement=(
            r"With weight decay a learned mode keeps an error :math:`\lambda`, which goes on moving the reader, and "
            r"anisotropic label noise adds a pull of its own, "
            r":math:`\Delta = \sigma_2^2 - \sigma_1^2`. A tilt of the reader, the two weights that it distorts and "
            r"nothing else form a linear system of three variables. With :math:`\alpha = s_2^2 - \lambda^2 + \Delta`, "
            r":math:`\beta = 2 s_1 \alpha - (s_1 - \lambda) s_2^2` and :math:`\kappa = \lambda^2 (s_1^2 - s_2^2) - "
            r"s_1^2 \Delta` the hidden state is stable if and only if :math:`\kappa > 0`, "
            r":math:`\rho\alpha < 2 s_1` and :math:`(2 s_1 - \rho\alpha)(s_1^2 - \rho\beta) > \rho\kappa`; the reader "
            r"turns by a Hopf bifurcation."
        ),
        assumptions=(
            WHITENED,
            r"One learned mode of strength :math:`s_1 - \lambda`, balanced, mirror aligned (perfect or Kolen-Pollack), "
            r"reader on it; one hidden mode. Several of either fall apart into such pairs.",
            r"Decay :math:`\lambda < s_1` of W1, W2 and Q, none of P; noise that is independent in the modes' outputs.",
        ),
        steps=(
            Step(
                "The state stands still.",
                still,
                sp.zeros(7, 1),
                (EXPAND,),
                shown=r"(\dot W_1, \dot W_2, \dot P, \dot Q)^T",
            ),
            Step(
                "What belongs to mode 2 and what belongs to mode 1 do not act on each other.",
                apart,
                sp.zeros(24, 1),
                (EXPAND,),
                shown=r"(J_{21}, J_{12})",
            ),
            Step(
                r"The weight from input 2, the weight to output 2 and the tilt of P, with :math:`w^2 = s_1 - \lambda`.",
                block.subs(a, w**2 + lam),
                sp.Matrix(
                    [
                        [-(w**2) - lam, 0, w * b],
                        [b, -(w**2) - lam, 0],
                        [-rho * w * b, -rho * w * lam, rho * (b**2 - lam**2 + delta)],
                    ]
                ),
                (EXPAND,),
                shown="J_{22}",
            ),
            Step(
                "Their characteristic polynomial.",
                (x * sp.eye(3) - block).det(method="berkowitz"),
                x**3 + c2 * x**2 + c1 * x + c0,
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_{22})",
            ),
            Step(
                "Mode 1 by itself is always stable.",
                (x * sp.eye(4) - own).det(method="berkowitz"),
                (x + lam) * (x + 2 * lam) * (x + 2 * (a - lam)) * (x + 2 * rho * (lam**2 + sigma**2)),
                (EXPAND,),
                shown=r"\det(x I - J_{11})",
            ),
            Step(
                r"The criterion of Routh and Hurwitz, :math:`c_2 c_1 > c_0` with all coefficients positive, is of "
                r"second degree in :math:`\rho`.",
                c2 * c1 - c0,
                pull * slope * rho**2 - linear * rho + 2 * a**3,
                (EXPAND,),
                key=True,
                shown="c_2 c_1 - c_0",
            ),
            Step(
                r"Its smallest positive root is the critical rate; as an equation for :math:`1/\rho_c` it has no case "
                "that has to be treated apart.",
                2 * a**3 * inverse**2 - linear * inverse + pull * slope,
                sp.Integer(0),
                (EXPAND,),
                shown=r"2 s_1^3 \rho_c^{-2} - (2 s_1 \beta + s_1^2 \alpha + \kappa) \rho_c^{-1} + \alpha\beta",
            ),
            Step(
                r"There two eigenvalues are imaginary, :math:`\pm i\sqrt{c_1}`: a Hopf bifurcation.",
                (x**3 + x2 * x**2 + x1 * x + x0).subs(x0, x1 * x2),
                (x + x2) * (x**2 + x1),
                (EXPAND,),
                key=True,
                shown=r"x^3 + c_2 x^2 + c_1 x + c_0 \; (c_0 = c_1 c_2)",
            ),
            Step(
                r"Weak decay, no noise: :math:`\rho_c = (s_1 - \lambda)/s_2^2 + O(\lambda^2)`; the criterion there "
                "is of second order.",
                sp.series((c2 * c1 - c0).subs(bare).subs(rho, (a - lam) / b**2), lam, 0, 2).removeO(),
                sp.Integer(0),
                (SIMPLIFY,),
                key=True,
                shown=r"(c_2 c_1 - c_0)(\rho = (s_1 - \lambda)/s_2^2) \bmod \lambda^2",
            ),
            Step(
                r"Its frequency there, :math:`\omega^2 = c_0/c_2`, is :math:`\lambda^2 (s_1^2 - s_2^2)/s_2^2` for weak "
                "decay.",
                sp.Limit((c0 / c2 / lam**2).subs(bare).subs(rho, (a - lam) / b**2), lam, 0),
                (a**2 - b**2) / b**2,
                (EVALUATE,),
                key=True,
                shown=r"\lim_{\lambda \to 0} \omega^2/\lambda^2",
            ),
            Step(
                r"No decay: the weight to output 2 follows passively, and the criterion is that of two variables, "
                r":math:`\rho(s_2^2 + \Delta) < s_1` with :math:`\Delta < 0`.",
                (x**3 + c2 * x**2 + c1 * x + c0).subs(lam, 0),
                (x + a) * (x**2 + (a - rho * (b**2 + delta)) * x - rho * a * delta),
                (EXPAND,),
                key=True,
                shown=r"\det(x I - J_{22}) \; (\lambda = 0)",
            ),
        ),
        sizes="n = m = 2, k = r = 1, every entry symbolic. " + MATHEMATICAL_SHAPES,
        theory=("critical_reader_rate", "turning_exponent"),
        test="tests/test_theory_turning.py::test_pairs_are_eigenvalues_of_the_whole_flow",
        citations=("hanut2025", "oja1982", "leen1990"),
    )


class _Activation(sp.Function):
    """A unit's activity as a function of its input; its slope has a name of its own."""

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.Function("phi'")(self.args[0])


@derivation
def visible_errors() -> Derivation:
    """Derive how errors on samples become visible in a network with one nonlinear hidden layer."""
    rho = sp.Symbol("rho", positive=True)
    slope = sp.Function("phi'")
    w1, w2 = (sp.Matrix(2, 2, sp.symbols(f"{c}_11 {c}_12 {c}_21 {c}_22", real=True)) for c in ("a", "b"))
    p, q = sp.Matrix(1, 2, sp.symbols("p_1 p_2", real=True)), sp.Matrix(2, 1, sp.symbols("q_1 q_2", real=True))
    x, y = ([sp.Matrix(2, 1, sp.symbols(f"{c}_{i}1 {c}_{i}2", real=True)) for i in (1, 2)] for c in ("x", "y"))
    h = [(w1 * one).applyfunc(_Activation) for one in x]
    slopes = [sp.diag(*(w1 * one).applyfunc(slope)) for one in x]
    delta = [target - w2 * unit for target, unit in zip(y, h, strict=True)]
    v = [p * one for one in delta]
    half = sp.Rational(1, 2)
    C = half * (delta[0] * delta[0].T + delta[1] * delta[1].T)
    moves = [
        (w1, half * (slopes[0] * q * v[0] * x[0].T + slopes[1] * q * v[1] * x[1].T)),
        (w2, half * (delta[0] * h[0].T + delta[1] * h[1].T)),
        (p, rho * p * C * (sp.eye(2) - p.T * p)),
    ]
    found = sum(
        (
            v[0].diff(variable) * velocity
            for array, change in moves
            for variable, velocity in zip(array, change, strict=True)
        ),
        sp.zeros(1, 1),
    )

    def carried(nu: int) -> sp.Expr:
        kernel = (x[0].T * x[nu])[0] * (p * w2 * slopes[0] * slopes[nu] * q)[0] + (h[0].T * h[nu])[0]
        return (rho * (delta[0].T * delta[nu])[0] - kernel) * v[nu][0]

    cubic = half * rho * (v[0][0] ** 2 + v[1][0] ** 2) * v[0][0]
    return Derivation(
        name="visible_errors",
        title="Visible errors in a nonlinear network",
        statement=(
            r"In a network with one hidden layer of activities :math:`h_\mu` and slopes :math:`D_\mu` on sample "
            r":math:`\mu`, the errors that an error-driven reader sees, :math:`v_\mu = P\delta_\mu`, obey to first "
            r"order :math:`\dot v_\mu = \langle \rho\,(\delta_\mu^\top\delta_\nu) v_\nu "
            r"- (x_\mu^\top x_\nu) P W_2 D_\mu D_\nu Q v_\nu - (h_\mu^\top h_\nu) v_\nu\rangle_\nu`, "
            r"whatever the activation is."
        ),
        assumptions=(
            r"Gradient flow on given samples, any inputs; Oja's reader with "
            r":math:`C = \langle\delta\delta^\top\rangle`; no weight decay.",
            "Any mirror Q: its own motion enters at second order.",
        ),
        steps=(
            Step(
                "Without approximation, on the first of two samples.",
                found[0],
                half * (carried(0) + carried(1)) - cubic,
                (EXPAND,),
                key=True,
                shown=r"\dot v_1",
                shown_rhs=r"\big\langle \rho\,(\delta_1^\top\delta_\nu)\,v_\nu "
                r"- (x_1^\top x_\nu)\,PW_2D_1D_\nu Q\,v_\nu - (h_1^\top h_\nu)\,v_\nu "
                r"- \rho\,v_\nu v_\nu^\top v_1 \big\rangle_\nu",
            ),
        ),
        sizes="Two samples, two inputs, two hidden units, two outputs, r = 1, every entry symbolic; the activation is "
        "any function. " + MATHEMATICAL_SHAPES,
        theory=("visible_error_flow",),
        test="tests/test_theory_turning.py::test_visible_errors_of_tanh_units_move_as_in_the_whole_flow",
        citations=("hanut2025", "oja1982"),
    )
