r"""Mirrors: how the way back follows the forward weights, :math:`\delta' = Q z` with Q towards :math:`W^\top P^\top`.

In code shapes Q is a kernel shaped like the weights, with `rank` output features: the ideal mirror is ``P @ W``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from linfb._checks import choice, real, real_array
from linfb.backend import namespace
from linfb.rules.base import Channel, Layer, Mirror, View

__all__ = ["Exact", "Fixed", "KolenPollack", "Normative", "WeightMirror", "Zero"]


@dataclass(frozen=True)
class Exact(Mirror):
    """Transport the weights themselves: Q = P W; with the identity as reader this is backpropagation."""

    name: ClassVar[str] = "exact"
    transports_weights: ClassVar[bool] = True

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return the channel; Q is computed from the weights whenever it is needed."""
        return Channel(P=P)

    def carry(self, view: View) -> Any:
        """Return the error at the layer's input."""
        P = view.channel.P
        kernel = view.weights if P is None else view.layer.compose(P, view.weights)
        return view.layer.pull(kernel, view.cache, view.z)


@dataclass(frozen=True)
class Zero(Mirror):
    """Carry nothing: only the readout learns. The baseline that every comparison needs."""

    name: ClassVar[str] = "zero"

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return the channel, which has no Q."""
        return Channel(P=P)

    def carry(self, view: View) -> Any:
        """Return a zero error at the layer's input."""
        return namespace(view.delta).zeros(view.cache.shape, dtype=view.delta.dtype)


def draw(start: Any, scale: float | None, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a kernel: Gaussian with entries of s.d. `scale` (None: rows of unit expected norm), or the one given."""
    if not isinstance(start, str):
        return real_array("start (the mirror's Q)", start, shape)
    sd = 1.0 / np.sqrt(np.prod(shape[1:])) if scale is None else scale
    return sd * rng.standard_normal(shape)


def _keep_start(mirror: Any, allowed: tuple[str, ...]) -> None:
    """Check a mirror's start and scale, and keep a copy of a start that is given as an array."""
    if isinstance(mirror.start, str):
        choice("start", mirror.start, allowed)
    else:
        object.__setattr__(mirror, "start", real_array("start", mirror.start).copy())
    if mirror.scale is not None:
        real("scale", mirror.scale, above=0.0)


@dataclass(frozen=True, eq=False)
class Fixed(Mirror):
    """Never follow: a kernel that stays as it was drawn or given (feedback alignment, direct feedback alignment).

    Parameters
    ----------
    start : "random", "weights" or array_like shaped like the kernel
        Independent Gaussian entries; a copy of P W at the start; or the kernel itself.
    scale : float, optional
        Standard deviation of the entries; None gives rows of unit expected norm.
    """

    start: Any = "random"
    scale: float | None = None
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        _keep_start(self, ("random", "weights"))

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start."""
        if isinstance(self.start, str) and self.start == "weights":
            return Channel(P=P, Q=_mirrored(layer, P, weights))
        return Channel(P=P, Q=draw(self.start, self.scale, shape, rng))


def _mirrored(layer: Layer, P: Any, weights: Any) -> np.ndarray:
    if weights is None:
        raise ValueError("start of the mirror cannot follow the weights under a direct rule: there are none to follow")
    return np.array(weights) if P is None else layer.compose(P, weights)


def _follower(mirror: Any, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: Any) -> Channel:
    """Return the start of a kernel that will follow the weights."""
    if isinstance(mirror.start, str) and mirror.start == "aligned":
        return Channel(P=P, Q=_mirrored(layer, P, weights))
    scale = mirror.scale
    if scale is None and weights is not None:
        scale = float(np.sqrt(np.mean(np.square(weights))))
    return Channel(P=P, Q=draw(mirror.start, scale, shape, rng))


@dataclass(frozen=True, eq=False)
class KolenPollack(Mirror):
    r"""Learn with the same products as the weights: :math:`\dot Q = h (P\delta)^\top - \lambda Q`.

    The mismatch :math:`Q - W^\top P^\top` decays as :math:`e^{-\lambda t}` while P rests (equal rates, updates linear
    in the gradient): mirroring without transport of weights.

    Parameters
    ----------
    rate : float
        Rate relative to the forward weights; 1 is what mirrors exactly.
    start : {"random", "aligned"} or array_like shaped like the kernel
        Independent of the weights; the mirror of the weights at the start; or the kernel itself.
    scale : float, optional
        Standard deviation of the entries of a random start; None takes that of the layer's weights (under a direct
        rule, rows of unit expected norm).

    References
    ----------
    :cite:t:`kolenpollack1994`, :cite:t:`akrout2019`; through a narrow channel :cite:t:`hanut2025`.
    """

    rate: float = 1.0
    start: Any = "random"
    scale: float | None = None
    name: ClassVar[str] = "kolen_pollack"
    learns: ClassVar[bool] = True
    decays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)
        _keep_start(self, ("random", "aligned"))

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start."""
        return _follower(self, layer, P, weights, shape, rng)

    def gradient(self, view: View) -> Any:
        """Return the gradient that the weights have, seen through P."""
        return view.layer.grad(view.channel.Q, view.cache, view.z)


@dataclass(frozen=True, eq=False)
class WeightMirror(Mirror):
    r"""Follow the weights by sending noise through them: :math:`\dot Q = \gamma (W^\top P^\top - Q)`.

    Written for unit noise on the layer's input, averaged over the noise exactly (one probe per input direction).

    Parameters
    ----------
    rate : float
        :math:`\gamma`, relative to the rate of the forward weights.
    start : {"random", "aligned"} or array_like shaped like the kernel
        As in :class:`KolenPollack`.
    scale : float, optional
        As in :class:`KolenPollack`.

    References
    ----------
    :cite:t:`akrout2019`.
    """

    rate: float = 1.0
    start: Any = "random"
    scale: float | None = None
    name: ClassVar[str] = "weight_mirror"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)
        _keep_start(self, ("random", "aligned"))

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start, as :class:`KolenPollack` does."""
        return _follower(self, layer, P, weights, shape, rng)

    def gradient(self, view: View) -> Any:
        """Return :math:`Q - P W`, P W being what noise through the layer shows."""
        xp = namespace(view.cache)
        probe = xp.eye(view.cache.shape[-1], dtype=view.cache.dtype)
        response, P = view.forward(probe), view.channel.P
        z = response if P is None else response @ xp.matrix_transpose(P)
        return view.channel.Q - view.layer.grad(view.channel.Q, probe, z)


@dataclass(frozen=True)
class Normative(Mirror):
    r"""Descend :math:`\tfrac12\|P^\top Q - W\|^2` from the truncated singular value decomposition of W (code shapes).

    The start is shared evenly, :math:`P = \sqrt{S_r}\,U_r^\top` and :math:`Q = \sqrt{S_r}\,V_r^\top`, which puts reader
    and mirror on the same time scale. Uses the forward weights.

    Parameters
    ----------
    rate : float
        Rate relative to the forward weights.
    """

    rate: float = 1.0
    name: ClassVar[str] = "normative"
    learns: ClassVar[bool] = True
    transports_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start."""
        rank = shape[0]
        left, values, right = np.linalg.svd(np.reshape(weights, (len(weights), -1)), full_matrices=False)
        root = np.sqrt(values[:rank])[:, None]
        P_start, Q_start = np.zeros((rank, len(weights))), np.zeros((rank, right.shape[1]))
        P_start[: len(root)], Q_start[: len(root)] = root * left[:, :rank].T, root * right[:rank]
        return Channel(P=P_start, Q=Q_start.reshape(shape))

    def gradient(self, view: View) -> Any:
        """Return :math:`P (P^T Q - W)`, shaped like Q."""
        P, Q = view.channel.P, view.channel.Q
        xp = namespace(P)
        return view.layer.compose(P, view.layer.compose(xp.matrix_transpose(P), Q) - view.weights)
