"""Deep linear networks with a channel below every layer: aligned mirrors and what they conserve."""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from derivations.algebra import Flow, all_sizes, at_sizes, rate
from derivations.core import Derivation, Step
from derivations.registry import derivation
from derivations.setting import WHITENED, lam

ASSUMPTIONS = (
    WHITENED,
    r"A mirror :math:`Q_l` and a fixed channel :math:`P_l` carry the error of layer l + 1 "
    r"to layer l: :math:`\delta_l = Q_lP_l\delta_{l+1}`.",
    "Equal learning rates and equal weight decay in all layers and mirrors.",
)
SHAPES = (
    r":math:`W_l` is :math:`n_l\times n_{l-1}`, :math:`P_l` is :math:`r_l\times n_{l+1}`, "
    r":math:`Q_l` is :math:`n_l\times r_l` (the transpose of the code's)."
)


@dataclass(frozen=True)
class DeepNetwork:
    """The symbols of a deep linear network: layers from below, channels and mirrors between them.

    Parameters
    ----------
    widths : tuple of int
        Explicit widths, from the input to the output.
    ranks : tuple of int
        Explicit ranks of the channels, from below.
    """

    widths: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of weight layers."""
        return len(self.widths) - 1

    @property
    def _dims(self) -> tuple[tuple[sp.Symbol, ...], tuple[sp.Symbol, ...]]:
        widths = tuple(sp.Symbol(f"n_{i}", integer=True, positive=True) for i in range(self.depth + 1))
        ranks = tuple(sp.Symbol(f"r_{i}", integer=True, positive=True) for i in range(1, self.depth))
        return widths, ranks

    @property
    def sizes(self) -> dict[sp.Symbol, int]:
        """The explicit size of every dimension."""
        widths, ranks = self._dims
        return dict(zip((*widths, *ranks), (*self.widths, *self.ranks), strict=True))

    @property
    def weights(self) -> tuple[sp.MatrixSymbol, ...]:
        """The weights, from below."""
        widths, _ = self._dims
        return tuple(sp.MatrixSymbol(f"W_{i}", widths[i], widths[i - 1]) for i in range(1, self.depth + 1))

    @property
    def channels(self) -> tuple[sp.MatrixSymbol, ...]:
        """The channels, from below."""
        widths, ranks = self._dims
        return tuple(sp.MatrixSymbol(f"P_{i}", ranks[i - 1], widths[i + 1]) for i in range(1, self.depth))

    @property
    def mirrors(self) -> tuple[sp.MatrixSymbol, ...]:
        """The mirrors, from below."""
        widths, ranks = self._dims
        return tuple(sp.MatrixSymbol(f"Q_{i}", widths[i], ranks[i - 1]) for i in range(1, self.depth))

    def flow(self, mirrors: tuple[sp.MatrixExpr, ...], decay: sp.Expr) -> Flow:
        """Return the flow of weights (and of mirrors that are symbols); E is the error correlation at the output."""
        widths, _ = self._dims
        below = [sp.Identity(widths[0])]
        for weight in self.weights:
            below.append(weight * below[-1])
        errors = [sp.MatrixSymbol("E", widths[-1], widths[0])]  # delta_l x^T, averaged, from the output down
        for mirror, channel in zip(reversed(mirrors), reversed(self.channels), strict=True):
            errors.append(mirror * channel * errors[-1])
        errors = errors[::-1]
        rates = {w: errors[i] * below[i].T - decay * w for i, w in enumerate(self.weights)}
        for i, (mirror, channel) in enumerate(zip(mirrors, self.channels, strict=True)):
            if isinstance(mirror, sp.MatrixSymbol):
                rates[mirror] = below[i + 1] * (channel * errors[i + 1]).T - decay * mirror
        return rates


def _aligned(network: DeepNetwork) -> tuple[sp.MatrixExpr, ...]:
    """Return the mirrors that are aligned with the weights above them."""
    return tuple(w.T * p.T for w, p in zip(network.weights[1:], network.channels, strict=True))


def _deep(name: str, network: DeepNetwork, words: str) -> Derivation:
    """Derive alignment and conserved matrices of a network of a given depth."""
    both = (all_sizes(), at_sizes(network.sizes))
    learned = network.flow(network.mirrors, lam)
    aligned, still = (network.flow(_aligned(network), decay) for decay in (lam, sp.Integer(0)))
    steps: list[Step] = []
    for i, mirror in enumerate(_aligned(network)):
        mismatch = network.mirrors[i] - mirror
        steps.append(
            rate(
                f"Mirror {i + 1} aligns with the weights above it, whatever the other mirrors do.",
                mismatch,
                learned,
                -lam * mismatch,
                both,
            )
        )
    for i, (lower, upper) in enumerate(zip(network.weights, network.weights[1:], strict=False)):
        metric = network.channels[i].T * network.channels[i]
        balance = lower * lower.T - upper.T * metric * upper
        steps.append(
            rate(
                f"With aligned mirrors the imbalance between layers {i + 1} and {i + 2} is conserved "
                r"at :math:`\lambda = 0`.",
                balance,
                still,
                sp.ZeroMatrix(*balance.shape),
                both,
                key=True,
            )
        )
        steps.append(rate("With weight decay it decays.", balance, aligned, -2 * lam * balance, both))
    widths, ranks = (", ".join(map(str, values)) for values in (network.widths, network.ranks))
    return Derivation(
        name=name,
        title=f"Invariants of a network of {words} layers",
        statement=(
            "With aligned mirrors and fixed channels of any ranks the imbalance of neighbouring layers, "
            r":math:`W_lW_l^\top - W_{l+1}^\top M_lW_{l+1}` with :math:`M_l = P_l^\top P_l`, is "
            r"conserved without weight decay and decays as :math:`e^{-2\lambda t}` with it; "
            "each mirror aligns by itself."
        ),
        assumptions=ASSUMPTIONS,
        steps=tuple(steps),
        sizes=(
            f"For all widths and ranks at depth {network.depth}; once more at widths {widths} (input first) and "
            f"ranks {ranks}. "
            "For any depth: the argument only involves two neighbouring layers, the error above "
            "and the activity below. " + SHAPES
        ),
        theory=("deep_conserved",),
        test="tests/test_theory_deep.py::test_conserved_along_the_flow",
        citations=("hanut2025", "saxe2013", "kolenpollack1994"),
    )


@derivation
def deep_invariants_three() -> Derivation:
    """Derive the conserved matrices of a network of three layers with channels of ranks 1 and 2."""
    return _deep("deep_invariants_three", DeepNetwork((2, 2, 3, 2), (1, 2)), "three")


@derivation
def deep_invariants_four() -> Derivation:
    """Derive the conserved matrices of a network of four layers with channels of ranks 2, 1 and 3."""
    return _deep("deep_invariants_four", DeepNetwork((1, 2, 2, 2, 3), (2, 1, 3)), "four")
