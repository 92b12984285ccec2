"""How a reader that follows the errors leaves a hidden state, and how it goes round when its mirror cannot follow."""

from __future__ import annotations

import sympy as sp

from derivations.core import EXPAND, SIMPLIFY, Derivation, Step
from derivations.registry import derivation
from derivations.setting import MATHEMATICAL_SHAPES, WHITENED, lam

phi, psi = sp.symbols("phi psi", real=True)
rho, omega, q = sp.symbols("rho omega q", positive=True)
b = sp.Symbol("b", positive=True)
gap = sp.Symbol("g", positive=True)
"""g = a^2 - b^2 > 0 for the strengths a of the learned and b of the hidden mode."""
a = sp.sqrt(b**2 + gap)
ALPHA = sp.Symbol("alpha", positive=True)
PAIR = r"Two modes, :math:`a = s_r` and :math:`b = s_{r+1}`, one hidden unit of input weights :math:`\omega v`, "
ANGLES = (
    r":math:`v = (\cos\varphi, \sin\varphi)`, :math:`v_\perp = (-\sin\varphi, \cos\varphi)`, "
    r":math:`\alpha = |Av_\perp|`."
)


def _frame() -> tuple[sp.Matrix, sp.Matrix, sp.Matrix, sp.Expr]:
    """Return A, v, v_perp and alpha^2."""
    task, v = sp.diag(a, b), sp.Matrix([sp.cos(phi), sp.sin(phi)])
    across = v.diff(phi)
    return task, v, across, a**2 * sp.sin(phi) ** 2 + b**2 * sp.cos(phi) ** 2


def _turned(vector: sp.Matrix) -> sp.Matrix:
    return sp.Matrix([-vector[1], vector[0]])


@derivation
def captured_rotation() -> Derivation:
    """Derive that one hidden unit is left when a Kolen-Pollack mirror is captured, and how the network goes round."""
    task, v, across, alpha2 = _frame()
    alpha = sp.sqrt(alpha2)
    w, c, p, other = (sp.Matrix(sp.symbols(f"{x}_1:3", real=True)) for x in ("w", "c", "p", "w'"))
    other_q = sp.Symbol("q'", real=True)
    heard = (task - c * w.T).T * p
    dw, dq = q * heard - lam * w, (w.T * heard)[0] - lam * q
    d_other, dq_other = other_q * heard - lam * other, (other.T * heard)[0] - lam * other_q
    system = sp.Matrix.vstack(sp.Matrix.hstack(-lam * sp.eye(2), heard), sp.Matrix.hstack(heard.T, sp.Matrix([[-lam]])))
    error = task * (sp.eye(2) - v * v.T)
    along = task * across / alpha
    reader = sp.cos(psi) * along - sp.sin(psi) * _turned(along)
    sees = error.T * reader
    turn = rho * ((sees.T * error.T) * _turned(reader))[0]
    rotation = q / omega * (sees.T * across)[0]
    modulus = sp.Symbol("m", positive=True)
    return Derivation(
        name="captured_rotation",
        title="The cycle of capture",
        statement=(
            "When an error-driven reader turns under a Kolen-Pollack mirror, the hidden layer falls back on as many "
            r"units as the channel is wide. For one channel and one unit: the weights of all other units decay as "
            r":math:`e^{-\lambda t}` and :math:`e^{-2\lambda t}`, on average over a cycle. For weak decay the map is "
            r":math:`Avv^\top` with a rotating v, at a speed that does not depend on the decay: with the lag "
            r":math:`\psi` of the reader behind the error the unit hears :math:`\alpha\cos\psi`, and turns by it."
        ),
        assumptions=(
            WHITENED,
            PAIR + r"readout c, mirror q, reader p (unit length). " + ANGLES,
            r"The first four equations for any decay :math:`\lambda` of W1, W2 and Q and any rate of the reader; the "
            r"others for weak decay, where :math:`\omega^2 \sim 1/\lambda` is large and the readout has regressed, "
            r":math:`c = Av/\omega`.",
        ),
        steps=(
            Step(
                r"The imbalance of unit and mirror is forgotten.",
                sp.expand(2 * (w.T * dw)[0] - 2 * q * dq),
                -2 * lam * ((w.T * w)[0] - q**2),
                (EXPAND,),
                key=True,
                shown=r"\frac{\mathrm d}{\mathrm dt}(|w|^2 - q^2)",
            ),
            Step(
                "Another unit (primed), as long as it is small, obeys a linear system in its input weights and its "
                "entry of the mirror; its readout does not act back.",
                sp.Matrix([*d_other, dq_other]),
                system * sp.Matrix([*other, other_q]),
                (EXPAND,),
                shown=r"(\dot w', \dot q')^T",
            ),
            Step(
                r"One solution is a copy of the captured unit, which is a rotation of the hidden space and neutral; "
                r"one combination decays as :math:`e^{-2\lambda t}`,",
                sp.expand((dw.T * other)[0] + (w.T * d_other)[0] - dq * other_q - q * dq_other),
                -2 * lam * ((w.T * other)[0] - q * other_q),
                (EXPAND,),
                key=True,
                shown=r"\frac{\mathrm d}{\mathrm dt}(w\cdot w' - qq')",
            ),
            Step(
                r"and since exponents add up to the trace, the third is :math:`-\lambda`.",
                system.trace(),
                0 - 2 * lam - lam,
                (EXPAND,),
                key=True,
                shown=r"\mathrm{tr}",
            ),
            Step(
                "With a readout that has regressed, the error that is left.",
                error,
                (task * across) * across.T,
                (SIMPLIFY,),
                key=True,
                shown="A(I - vv^T)",
                shown_rhs=r"(Av_\perp)v_\perp^T",
            ),
            Step(
                r"A reader that lags by :math:`\psi` behind it, "
                r":math:`p = \cos\psi\, n - \sin\psi\, n_\perp` with :math:`n = Av_\perp/\alpha`, passes on "
                r":math:`\alpha\cos\psi`; the unit turns,",
                rotation - q / omega * alpha * sp.cos(psi),
                sp.Integer(0),
                (SIMPLIFY,),
                key=True,
                shown=r"\dot\varphi - \frac q\omega\,\alpha\cos\psi",
            ),
            Step(
                "and so does the reader.",
                turn - rho * alpha2 * sp.cos(psi) * sp.sin(psi),
                sp.Integer(0),
                (SIMPLIFY,),
                shown=r"\dot\theta - \rho\,\alpha^2\cos\psi\sin\psi",
            ),
            Step(
                r"The direction n of the error turns with the unit. With :math:`q = \omega` the lag thus obeys "
                r":math:`\mathrm d\psi/\mathrm d\varphi = ab/\alpha^2 - \rho\alpha\sin\psi`, and the cycle takes "
                r":math:`\int_0^\pi \mathrm d\varphi/(\alpha\cos\psi)`.",
                (along.diff(phi).T * _turned(along))[0],
                a * b / alpha2,
                (SIMPLIFY,),
                key=True,
                shown=r"n_\perp\cdot\frac{\mathrm dn}{\mathrm d\varphi}",
                shown_rhs=r"\frac{ab}{\alpha^2}",
            ),
            Step(
                r"What the readout lags behind feeds unit and mirror alike, "
                r":math:`\tfrac12\,\mathrm d\omega^2/\mathrm dt = \dot\varphi^2 - \lambda\omega^2`, since "
                r":math:`Ew = \dot c` to leading order: weights are as large as :math:`\omega^2 = "
                r"\langle\dot\varphi^2\rangle/\lambda`.",
                q * ((task * across * rotation / omega).T * reader)[0] - rotation**2,
                sp.Integer(0),
                (SIMPLIFY,),
                key=True,
                shown=r"q\,\dot c\cdot p - \dot\varphi^2",
            ),
            Step(
                r"An infinitely fast reader does not lag. Then :math:`\alpha = a\sqrt{1 - k^2\cos^2\varphi}` and the "
                r"period is twice the complete elliptic integral, :math:`2K(k)/a`.",
                sp.diff(sp.elliptic_f(phi, modulus), phi) * sp.sqrt(1 - modulus * sp.sin(phi) ** 2),
                sp.Integer(1),
                (SIMPLIFY,),
                shown=r"\sqrt{1 - k^2\sin^2\varphi}\,\frac{\mathrm dF(\varphi, k)}{\mathrm d\varphi}",
            ),
            Step(
                "There",
                alpha2,
                a**2 * (1 - (1 - b**2 / a**2) * sp.cos(phi) ** 2),
                (SIMPLIFY,),
                key=True,
                shown=r"\alpha^2",
                shown_rhs=r"a^2\big(1 - (1 - b^2/a^2)\cos^2\varphi\big)",
            ),
        ),
        sizes="n = m = 2, k = r = 1, every entry symbolic. " + MATHEMATICAL_SHAPES,
        theory=("capture_period", "capture_rate"),
        test="tests/test_theory_capture.py::test_period_of_the_whole_flow",
        citations=("hanut2025", "kolenpollack1994", "leen1990"),
    )


@derivation
def basin_of_hiding() -> Derivation:
    """Derive how far a reader must be tilted to leave a hidden state below the critical rate."""
    task, v, across, alpha2 = _frame()
    alpha = sp.sqrt(alpha2)
    hidden = sp.Matrix([b * sp.cos(phi), sp.sqrt(b**2 + gap) * sp.sin(phi)]) / alpha
    delta, beta, tilt = sp.symbols("delta beta theta_c", positive=True)
    rate = (a - delta) / b**2
    follow = a / (hidden.T * task * v)[0]  # omega / q for a mirror that follows: q = p A v / omega, omega^2 = a

    def growth(share: sp.Expr) -> sp.Expr:
        return rate * alpha2 * share - a * b / alpha

    def expanded(share: sp.Expr) -> sp.Expr:
        series = sp.series(growth(share), phi, 0, 3).removeO()
        return sp.expand(series.coeff(phi, 0)) + phi**2 * sp.simplify(series.coeff(phi, 2).subs(delta, 0))

    visible = b * tilt - delta * phi + beta * phi**3 / 3
    lowest = {phi: sp.sqrt(delta / beta), tilt: sp.Rational(2, 3) * delta ** sp.Rational(3, 2) / sp.sqrt(beta) / b}
    return Derivation(
        name="basin_of_hiding",
        title="The basin of the hidden states",
        statement=(
            r"Without weight decay hidden states form a line, along which stability changes. A reader that is tilted "
            r"moves along it while what it sees is hidden again; where it crosses the point of change before "
            r"everything is hidden, it turns. Just below the critical rate, at :math:`\delta = a - \rho b^2`, the tilt "
            r"that is needed is :math:`\theta_c = \tfrac23\,\delta^{3/2}/(b\sqrt\beta)`."
        ),
        assumptions=(
            WHITENED,
            r":math:`\lambda = 0`. "
            + PAIR
            + r"balanced at the start, :math:`\omega^2 = a`, readout regressed. "
            + ANGLES,
            r"Leading order in :math:`\delta`; the mirror is that of Kolen and Pollack, or follows the readout.",
        ),
        steps=(
            Step(
                r"The line of hidden states, :math:`y = p\cdot Av_\perp = 0`.",
                (hidden.T * task * across)[0],
                sp.Integer(0),
                (SIMPLIFY,),
                key=True,
                shown=r"p\cdot Av_\perp \; (p \propto (b\cos\varphi, a\sin\varphi))",
            ),
            Step(
                "There the readout has, seen through the channel,",
                (hidden.T * task * v)[0],
                a * b / alpha,
                (SIMPLIFY,),
                shown=r"p\cdot Av",
                shown_rhs=r"\frac{ab}{\alpha}",
            ),
            Step(
                r"What is seen changes with the unit's angle by :math:`\mathrm dy/\mathrm d\varphi = "
                r"\rho\,(p_\perp\cdot Av_\perp)^2\,\omega/q - p\cdot Av`. Under Kolen-Pollack q stays :math:`\omega`;",
                expanded(sp.Integer(1)),
                -delta + sp.Rational(3, 2) * a * gap / b**2 * phi**2,
                (SIMPLIFY,),
                key=True,
                shown=r"\rho\alpha^2 - \frac{ab}{\alpha}",
                shown_rhs=r"-\delta + \frac{3a(a^2 - b^2)}{2b^2}\varphi^2 + \dots",
            ),
            Step(
                r"a mirror that follows has :math:`q = p\cdot Av/\omega`.",
                expanded(follow),
                -delta + 2 * a * gap / b**2 * phi**2,
                (SIMPLIFY,),
                key=True,
                shown=r"\rho\alpha^2\,\frac{a\alpha}{ab} - \frac{ab}{\alpha}",
                shown_rhs=r"-\delta + \frac{2a(a^2 - b^2)}{b^2}\varphi^2 + \dots",
            ),
            Step(
                r"From a tilt :math:`\theta_c`, :math:`y = b\theta_c - \delta\varphi + \tfrac13\beta\varphi^3` with "
                r":math:`\beta` the coefficient above. Its minimum",
                sp.diff(visible, phi).subs(lowest),
                sp.Integer(0),
                (SIMPLIFY,),
                shown=r"y'(\sqrt{\delta/\beta})",
            ),
            Step(
                "is zero at the tilt of the statement.",
                visible.subs(tilt, lowest[tilt]).subs(phi, lowest[phi]),
                sp.Integer(0),
                (SIMPLIFY,),
                key=True,
                shown=r"y(\sqrt{\delta/\beta}) \; (\theta_c = \tfrac23\,\delta^{3/2}/(b\sqrt\beta))",
            ),
        ),
        sizes="n = m = 2, k = r = 1, every entry symbolic. " + MATHEMATICAL_SHAPES,
        theory=("critical_tilt",),
        test="tests/test_theory_turning.py::test_tilt_that_escapes",
        citations=("hanut2025",),
    )
