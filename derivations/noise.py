"""Finite steps at the end of learning: what label noise keeps up, what it moves, and which steps are stable."""

from __future__ import annotations

import sympy as sp

from derivations.algebra import all_sizes
from derivations.core import SIMPLIFY, ClosedForm, Derivation, Step
from derivations.registry import derivation
from derivations.setting import MATHEMATICAL_SHAPES, W1, W2, P, m, n

GAUSSIAN = "Whitened Gaussian inputs, drawn anew for every step; label noise of covariance :math:`\\sigma^2I`."
LEARNED = r"Aligned mirror, fixed P, :math:`\lambda = 0`; weights without error, :math:`W_2W_1 = A`."
M = P.T * P
x, delta = sp.MatrixSymbol("x", n, 1), sp.MatrixSymbol("delta", m, 1)
D1, D2 = W2.T * M * delta * x.T, delta * (W1 * x).T  # the changes by one sample, per learning rate


@derivation
def label_noise_mode() -> Derivation:
    """Derive the loss that label noise keeps up about one learned mode."""
    alpha, gamma, kappa, s, eta, sigma = sp.symbols("alpha gamma kappa s eta sigma", positive=True)
    n_in, n_out, batch, nu = sp.symbols("n m b nu", positive=True)
    tilt = sp.sqrt(kappa * (1 - kappa))
    R = sp.ImmutableMatrix([[alpha + gamma * kappa, gamma * tilt], [0, alpha]])
    corner = (alpha + gamma * kappa) / 2 + (gamma * tilt) ** 2 / (2 * (2 * alpha + gamma * kappa))
    side = alpha * gamma * tilt / (2 * (2 * alpha + gamma * kappa))
    X = sp.ImmutableMatrix([[corner, side], [side, alpha / 2]])
    total = (n_in - 1) * gamma / 2 + (n_out - 2) * alpha / 2 + X.trace()
    ends = {alpha: s * sp.sqrt(kappa * nu), gamma: s / sp.sqrt(kappa * nu)}
    form = (eta * sigma**2 / (2 * batch) * total).subs(ends)

    def conditions(candidate: sp.Expr) -> tuple[Step, ...]:
        return (
            Step(
                "Backpropagation, balanced: the sum of the widths counts.",
                candidate.subs({kappa: 1, nu: 1}),
                eta * sigma**2 * s * (n_in + n_out) / (4 * batch),
                key=True,
                shown=r"\left.L_\sigma\right|_{\kappa = \nu = 1}",
            ),
        )

    return Derivation(
        name="label_noise_mode",
        title="The loss that label noise keeps up",
        statement=(
            "About one learned mode the error correlation is a linear process driven by label noise. Its stationary "
            r"variance, to first order in :math:`\eta`, gives the loss on top of that of the noise itself."
        ),
        assumptions=(
            GAUSSIAN,
            LEARNED,
            r"One hidden unit, :math:`A = s\,uv^\top`; P has orthonormal rows and :math:`u^\top Mu = \kappa`; "
            r":math:`W_1W_1^\top = \nu W_2^\top MW_2`, so that :math:`\alpha = W_1W_1^\top = s\sqrt{\kappa\nu}` and "
            r":math:`\gamma = W_2^\top W_2 = s/\sqrt{\kappa\nu}`. First order in :math:`\eta`.",
        ),
        steps=(
            Step(
                r"One sample with the output error :math:`\delta = Ex + \xi` changes the map, to first order.",
                D2 * W1 + W2 * D1,
                delta * x.T * W1.T * W1 + W2 * W2.T * M * delta * x.T,
                (all_sizes(),),
                key=True,
                shown=r"\frac{1}{\eta}\Delta(W_2W_1)",
            ),
            Step(
                r"Along the mode's input, in the output directions u and that of :math:`Mu - \kappa u`, E relaxes by "
                r":math:`R` and is driven by :math:`R\xi`: its covariance, in units of :math:`\eta\sigma^2/b`, solves "
                "the Lyapunov equation.",
                R * X + X * R.T,
                R * R.T,
                (SIMPLIFY,),
                shown=r"RX + XR^\top",
                shown_rhs=r"RR^\top, \qquad R = " + sp.latex(R),
            ),
            Step(
                r"In every other output direction it relaxes at :math:`\alpha`, in every other input at "
                r":math:`\gamma\kappa` (along u, driven with variance :math:`\gamma^2\kappa`).",
                2 * gamma * kappa * gamma / 2,
                gamma**2 * kappa,
                shown=r"2\gamma\kappa\cdot\frac{\gamma}{2}",
            ),
        ),
        closed_form=ClosedForm(r"L_\sigma", form, (s, kappa, n_in, n_out, sigma, eta, batch, nu), conditions),
        sizes="The change of the map is derived for all sizes. " + MATHEMATICAL_SHAPES,
        theory=("mode_excess_loss", "excess_loss"),
        test="tests/test_derivations_vs_theory.py::test_label_noise_mode",
        citations=("hanut2025",),
    )


@derivation
def label_noise_drift() -> Derivation:
    """Derive how steps on noisy samples change what the flow conserves."""
    return Derivation(
        name="label_noise_drift",
        title="What steps on noisy labels change",
        statement=(
            "To first order in the learning rate a step conserves the imbalance; its square does not. Averaged over "
            r"whitened inputs and label noise the right-hand side is :math:`\sigma^2\big(nW_2^\top M^2W_2 - "
            r"\mathrm{tr}(M)W_1W_1^\top\big)` per step and :math:`\eta^2`. It vanishes where "
            r":math:`W_1W_1^\top = (n/r)W_2^\top MW_2` if P has orthonormal rows."
        ),
        assumptions=(GAUSSIAN, LEARNED),
        steps=(
            Step(
                r"First order in :math:`\eta`: whatever the sample, nothing changes.",
                D1 * W1.T + W1 * D1.T - D2.T * M * W2 - W2.T * M * D2,
                sp.ZeroMatrix(W1.shape[0], W1.shape[0]),
                (all_sizes(),),
                shown=r"\Delta W_1W_1^\top + W_1\Delta W_1^\top - \Delta W_2^\top MW_2 - W_2^\top M\Delta W_2",
            ),
            Step(
                r"Second order: what is left, with :math:`\delta = \xi` at weights without error.",
                D1 * D1.T - D2.T * M * D2,
                W2.T * M * delta * x.T * x * delta.T * M * W2 - W1 * x * delta.T * M * delta * x.T * W1.T,
                (all_sizes(),),
                key=True,
                shown=r"\frac{1}{\eta^2}\big(\Delta W_1\Delta W_1^\top - \Delta W_2^\top M\Delta W_2\big)",
            ),
        ),
        sizes="For all sizes. " + MATHEMATICAL_SHAPES,
        theory=("noise_balance",),
        test="tests/test_theory_noise.py::test_noise_moves_the_balance",
        citations=("hanut2025",),
    )


@derivation
def largest_step() -> Derivation:
    """Derive the largest stable step of gradient descent at the end of learning."""
    left, right = sp.MatrixSymbol("p", m, 1), sp.MatrixSymbol("q", n, 1)
    g, f, s, kappa = sp.symbols("g f s kappa", positive=True)
    relations = (
        (right.T * W1.T * W1, g * right.T),
        (W2 * W2.T * P.T * P * left, f * left),
    )
    E = left * right.T
    step = 2 / (g + f)
    return Derivation(
        name="largest_step",
        title="The largest stable step",
        statement=(
            "Each pair of eigenvectors contracts by the sum of its eigenvalues: gradient descent at weights without "
            r"error is stable up to :math:`2/(g_{\max} + f_{\max})`. For M-balanced weights both are the largest "
            r"singular value of PA, for one mode :math:`\sqrt\kappa s`: a channel that slows a mode by "
            r":math:`1/\sqrt\kappa` allows steps larger by as much."
        ),
        assumptions=(r"Whitened inputs, :math:`\langle xx^\top\rangle = I`; all of the data in every step.", LEARNED),
        steps=(
            Step(
                r"On :math:`E = pq^\top`, with :math:`W_1^\top W_1q = gq` and :math:`W_2W_2^\top Mp = fp`.",
                E * W1.T * W1 + W2 * W2.T * M * E,
                (g + f) * E,
                (all_sizes(*relations, given=r":math:`q^\top W_1^\top W_1 = gq^\top`, :math:`W_2W_2^\top Mp = fp`"),),
                key=True,
                shown=r"E\,W_1^\top W_1 + W_2W_2^\top M\,E",
            ),
            Step(
                "The error changes its sign and keeps its size at the largest step.",
                1 - step * (g + f),
                sp.Integer(-1),
                (SIMPLIFY,),
                shown=r"1 - \eta_{\max}(g + f)",
            ),
            Step(
                "One balanced mode.",
                step.subs({g: sp.sqrt(kappa) * s, f: s / sp.sqrt(kappa) * kappa}),
                1 / (sp.sqrt(kappa) * s),
                (SIMPLIFY,),
                key=True,
                shown=r"\eta_{\max}",
            ),
        ),
        sizes="For all sizes. " + MATHEMATICAL_SHAPES,
        theory=("largest_step",),
        test="tests/test_theory_noise.py::test_largest_step_of_gradient_descent",
        citations=("saxe2013",),
    )
