"""Online learning of one mode under weight decay: what label noise and the choice of samples keep up."""

from __future__ import annotations

import sympy as sp

from derivations.core import EVALUATE, SIMPLIFY, ClosedForm, Derivation, Rewriting, Step
from derivations.noise import GAUSSIAN
from derivations.registry import derivation

s, kappa, decay, sigma, eta, batch = sp.symbols("s kappa lambda sigma eta b", positive=True)
n, m, r = sp.symbols("n m r", positive=True)
q, w, beta, e = sp.symbols("q w beta e", positive=True)  # root of kappa, that of 1 - kappa, readout, error that is left
STATE = sp.symbols("x_1 x_2 x_3 x_4 x_5 x_6", real=True)
ENDS = {s: q * beta**2 + e, decay: q * e, kappa: q**2}


def _shares(expr: sp.Expr) -> sp.Expr:
    """Return zero if a rational function vanishes for w^2 = 1 - q^2."""
    return sp.expand(sp.rem(sp.numer(sp.together(expr)), w**2 + q**2 - 1, w))


SHARES = Rewriting(
    r"as rational functions, with :math:`w^2 = 1 - q^2`",
    lambda value: value.applyfunc(_shares) if isinstance(value, sp.MatrixBase) else _shares(value),
)


def _setting() -> tuple[sp.ImmutableMatrix, sp.Expr, dict[sp.Symbol, sp.Expr]]:
    """Return the flow, the loss and the end point of W1 along v and another input, W2 along u, its tilt and others."""
    a, b, c, y, seen, unseen = STATE
    carried = q**2 * b**2 + 2 * q * w * b * c + w**2 * c**2 + seen**2  # W2^T M W2
    top, rate = q * beta**2 + e, q * e
    fade = a**2 + y**2 + rate
    flow = [
        top * (q**2 * b + q * w * c) - a * carried - rate * a,
        (top - b * a) * a - b * y**2 - rate * b,
        -fade * c,
        -(carried + rate) * y,
        -fade * seen,
        -fade * unseen,
    ]
    sides = c**2 + seen**2 + unseen**2
    loss = ((top - b * a) ** 2 + a**2 * sides + (b**2 + sides) * y**2) / 2
    return sp.ImmutableMatrix(flow), loss, dict(zip(STATE, (q * beta, beta, 0, 0, 0, 0), strict=True))


def _hessian() -> sp.ImmutableMatrix:
    """Return the Hessian of V, solved for by hand: the three coordinates of the mode's plane, then the others."""
    c = q * beta**2
    plane, both, slow = 4 * c * (c + e), c + 3 * e, 3 * c + e
    low = c**3 + 7 * c**2 * e - 21 * c * e**2 - 3 * e**3
    side = c**4 - 4 * c**3 * e - 6 * c**2 * e**2 - 20 * c * e**3 - 3 * e**4
    last = (
        5 * c**4 * q**2 + c**4 + 8 * c**3 * e * q**2 + 12 * c**3 * e + 14 * c**2 * e**2 * q**2 - 8 * c**2 * e**2
        - 24 * c * e**3 * q**2 + 24 * c * e**3 - 3 * e**4 * q**2 + 3 * e**4
    )  # fmt: skip
    corner = -w * low / (4 * c * q**2 * both * slow)
    edge = -w * side / (plane * q * both * slow)
    H = sp.zeros(6)
    H[:3, :3] = sp.Matrix([
        [(c + e) / (4 * c * q**2), (c + e) / (4 * c * q), corner],
        [(c + e) / (4 * c * q), (c + e) / (4 * c), edge],
        [corner, edge, last / (plane * q**2 * both * slow)],
    ])  # fmt: skip
    H[3, 3], H[4, 4], H[5, 5] = 1 / (2 * q**2), (c * q**2 + e) / (2 * q**2 * (c + e)), c / (2 * (c + e))
    return sp.ImmutableMatrix(H)


@derivation
def decayed_noise_mode() -> Derivation:
    """Derive the loss that noise keeps up about one mode under weight decay."""
    flow, loss, end = _setting()
    J = flow.jacobian(STATE).subs(end)
    slope = sp.ImmutableMatrix([loss.diff(x) for x in STATE]).subs(end)
    c, a = q * beta**2, q * beta
    tilt = e * w * (e - c) / (2 * beta * q**2 * (c + e))
    gradient = -sp.ImmutableMatrix([e / (2 * beta * q**2), e / (2 * beta * q), tilt, 0, 0, 0])
    H = _hessian()
    bends = sp.hessian(loss, STATE) + sum(
        (g * sp.hessian(f, STATE) for g, f in zip(gradient, flow, strict=True)), sp.zeros(6)
    )
    seen = sigma**2 + 2 * e**2  # of the error along u, by a Gaussian input along v
    noise = sp.ImmutableMatrix([
        [beta**2 * q**2 * (sigma**2 + 2 * q**2 * e**2), a * beta * q**2 * seen, a * beta * q * w * sigma**2],
        [a * beta * q**2 * seen, a**2 * seen, 0],
        [a * beta * q * w * sigma**2, 0, a**2 * sigma**2],
    ])  # fmt: skip
    input_noise = beta**2 * (q**2 * sigma**2 + q**4 * e**2)
    sides = (n - 1) * H[3, 3] * input_noise + ((r - 1) * H[4, 4] + (m - r - 1) * H[5, 5]) * a**2 * sigma**2
    total = (H[:3, :3] * noise).trace() + sides
    lost = decay / (sp.sqrt(kappa) * s)
    kept = 1 - lost
    tilt = 2 * (1 - kappa) * (1 + 3 * lost - 6 * lost**2) / (3 - 2 * lost)
    labels = kept * (n + lost * r + kept * kappa * m - tilt) + 2 * lost
    samples = kept * (n + 3) + 4 * lost
    form = eta * s / (4 * batch * sp.sqrt(kappa)) * (sigma**2 * labels + decay**2 * samples)
    balanced = (n - 1) / sp.sqrt(kappa) + (m + 1) * sp.sqrt(kappa) + (1 - kappa) / (3 * sp.sqrt(kappa))

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                r"The sum over all coordinates, in :math:`s = c + e` and :math:`\lambda = qe`.",
                candidate.subs(ENDS),
                eta / (2 * batch) * total,
                (SHARES,),
                shown=r"L_\sigma",
                shown_rhs=r"\frac{\eta}{2b}\operatorname{tr} NH",
            ),
            Step(
                "For vanishing decay it is the loss of :doc:`label_noise_mode` at balanced weights.",
                sp.limit(candidate, decay, 0, "+"),
                eta * sigma**2 * s / (4 * batch) * balanced,
                (EVALUATE,),
                shown=r"\lim_{\lambda\to0} L_\sigma",
            ),
            Step(
                "Backpropagation of scalars.",
                candidate.subs({kappa: 1, n: 1, m: 1, r: 1}),
                eta * s * (sigma**2 / 2 + decay**2) / batch,
                (SIMPLIFY,),
                shown=r"\left.L_\sigma\right|_{\kappa = n = m = 1}",
            ),
        )

    return Derivation(
        name="decayed_noise_mode",
        title="The loss that noise keeps up under weight decay",
        statement=(
            r"Let :math:`V(w) = \int_0^\infty (L(w_t) - L_\infty)\,dt` be the loss that the flow f from weights w "
            r"still costs: :math:`\nabla V\cdot f = L_\infty - L`. At rest online steps leave its mean as it is, "
            r"which to first order in :math:`\eta` means :math:`\langle L\rangle - L_\infty = "
            r"\frac{\eta}{2b}\operatorname{tr} N\nabla^2V` with the covariance N of the gradient of one sample at "
            r"the end point. Expanding the equation of V there to second order gives :math:`J^\top\nabla V = "
            r"-\nabla L` and a Lyapunov equation for :math:`H = \nabla^2V`."
        ),
        assumptions=(
            GAUSSIAN,
            r"Aligned mirror, fixed P with orthonormal rows, weight decay :math:`\lambda > 0`; one mode, one "
            r"hidden unit. With :math:`q = \sqrt\kappa`, :math:`w = \sqrt{1 - \kappa}`, the end point :math:`W_1 = "
            r"q\beta v^\top`, :math:`W_2 = \beta u` leaves the error :math:`e = \lambda/q` and has learned "
            r":math:`c = q\beta^2 = s - e`.",
            r"Coordinates: :math:`W_1` along v; :math:`W_2` along u and the direction of :math:`Mu - \kappa u`; "
            r"then, each as one of many, another input, and other outputs that the channel sees or does not see.",
        ),
        steps=(
            Step("The end point is at rest.", flow.subs(end), sp.zeros(6, 1), (SHARES,), shown="f"),
            Step(
                r"The flow about it, in the first three coordinates; in all others it relaxes at :math:`q(c + e) = "
                r"\sqrt\kappa\,s`, in these at that rate, at :math:`2\lambda` and at :math:`2qc`.",
                J[:3, :3],
                sp.ImmutableMatrix(
                    [[-q * (c + e), q**2 * (e - c), q * w * (e - c)], [e - c, -q * (c + e), 0], [0, 0, -q * (c + e)]]
                ),
                (SHARES,),
                shown="J",
            ),
            Step(
                "The gradient of V.", J.T * gradient, -slope, (SHARES,), shown=r"J^\top\nabla V", shown_rhs=r"-\nabla L"
            ),
            Step(
                r"The Hessian of V, whose entries are rational functions of c, e and q,",
                J.T * H + H * J,
                -bends.subs(end),
                (SHARES,),
                key=True,
                shown=r"J^\top H + HJ",
                shown_rhs=r"-\nabla^2L - \nabla V\cdot\nabla^2f",
            ),
        ),
        closed_form=ClosedForm(r"L_\sigma", form, (s, kappa, n, m, r, decay, sigma, eta, batch), conditions),
        sizes="Any number of inputs and outputs: those beside the mode enter by their number.",
        theory=("decayed_mode_excess_loss", "end_point_excess_loss"),
        test="tests/test_derivations_vs_theory.py::test_decayed_noise_mode",
        citations=("kunin2019", "hanut2025"),
    )
