r"""Mirrors: how the way back follows the forward weights, :math:`\delta' = Q z` with Q towards :math:`W^\top P^\top`.

In code shapes Q is a kernel shaped like the weights, with `rank` output features: the ideal mirror is ``P @ W`` (where
the reader's units are connected, their filters in the place of P).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from linfb._checks import choice, integer, real, real_array
from linfb._threads import rows
from linfb.backend import Key, Keys, namespace, reshape, transpose
from linfb.rules.base import Channel, Layer, Mirror, View

__all__ = ["Exact", "Fixed", "KolenPollack", "Normative", "Sign", "WeightMirror", "Zero"]


def _needed(key: Key | Keys | None, option: str) -> Key | Keys:
    if key is None:
        raise ValueError(f"mirror with {option} draws in every step and needs a key, which only training has")
    return key


@dataclass(frozen=True)
class Exact(Mirror):
    """Transport the weights themselves: Q = P W; with the identity as reader this is backpropagation."""

    name: ClassVar[str] = "exact"
    transports_weights: ClassVar[bool] = True

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return the channel; Q is computed from the weights whenever it is needed."""
        return Channel(P=P)

    def kernel(self, channel: Channel, perfect: Any = None, key: Key | Keys | None = None) -> Any:
        """Return P W."""
        return perfect


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


@dataclass(frozen=True)
class Sign(Mirror):
    r"""Follow the signs of the weights alone: in code shapes :math:`Q_{ij} = m_{ij}\operatorname{sign}(PW)_{ij}`.

    Parameters
    ----------
    magnitude : {"uniform", "fixed", "random"}
        One constant for all entries; half-normal magnitudes, drawn once; or half-normal ones, drawn anew in every step
        (in training only).
    scale : float, optional
        Root mean square of the magnitudes; None takes that of the layer's weights at the start.

    Notes
    -----
    Looks at the forward weights, at their signs only. The channel's gain holds the scale and, under "fixed", Q the
    magnitudes in units of it.

    References
    ----------
    :cite:t:`liao2016`, :cite:t:`moskovitz2018`.
    """

    magnitude: str = "uniform"
    scale: float | None = None
    name: ClassVar[str] = "sign"
    transports_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choice("magnitude", self.magnitude, ("uniform", "fixed", "random"))
        if self.scale is not None:
            real("scale", self.scale, above=0.0)

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P, the scale as gain, and the magnitudes where they stay."""
        scale = _rms(weights) if self.scale is None else float(self.scale)
        return Channel(P=P, Q=np.abs(rng.standard_normal(shape)) if self.magnitude == "fixed" else None, gain=scale)

    def kernel(self, channel: Channel, perfect: Any = None, key: Key | Keys | None = None) -> Any:
        """Return signs times magnitudes, in units of the scale."""
        xp = namespace(perfect)
        signs = xp.sign(perfect)
        if self.magnitude == "uniform":
            return signs
        if self.magnitude == "fixed":
            return signs * channel.Q
        return signs * xp.abs(_needed(key, "magnitude='random'").normal_like(perfect))


@dataclass(frozen=True, eq=False)
class Fixed(Mirror):
    """Never follow: a kernel that stays as it was drawn or given (feedback alignment, direct feedback alignment).

    Parameters
    ----------
    start : "random", "weights", "svd" or array_like shaped like the kernel
        Independent Gaussian entries; a copy of P W at the start; P and Q from the truncated singular value
        decomposition of the weights, as for :class:`Normative`, whatever start the reader has; or the kernel itself.
    scale : float, optional
        Standard deviation of the entries; None gives rows of unit expected norm.
    """

    start: Any = "random"
    scale: float | None = None
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        _keep_start(self, ("random", "weights", "svd"))

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start."""
        if self.sets_reader:
            return Channel(*_factors(weights, shape[0]))
        if isinstance(self.start, str) and self.start == "weights":
            return Channel(P=P, Q=_mirrored(layer, P, weights))
        return Channel(P=P, Q=draw(self.start, self.scale, shape, rng))


def _mirrored(layer: Layer, P: Any, weights: Any) -> np.ndarray:
    if weights is None:
        raise ValueError("start of the mirror cannot follow the weights under a direct rule: there are none to follow")
    return np.array(weights) if P is None else layer.compose(P, weights)


def _follower(mirror: Any, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: Any) -> Channel:
    """Return the start of a kernel that will follow the weights."""
    if mirror.sets_reader:
        return Channel(*_factors(weights, shape[0]))
    if isinstance(mirror.start, str) and mirror.start == "aligned":
        return Channel(P=P, Q=_mirrored(layer, P, weights))
    scale = mirror.scale
    if scale is None and weights is not None:
        scale = _rms(weights)
    return Channel(P=P, Q=draw(mirror.start, scale, shape, rng))


def _rms(weights: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(weights))))


def _factors(weights: Any, rank: int) -> tuple[Any, Any]:
    r"""Return :math:`P = \sqrt{S_r}\,U_r^\top, Q = \sqrt{S_r}\,V_r^\top`, with rows of zeros beyond all values."""
    xp, n_out = namespace(weights), weights.shape[0]
    left, values, right = xp.linalg.svd(reshape(weights, n_out, -1), full_matrices=False)
    root = xp.sqrt(values)[:rank, None]
    more = rank - root.shape[0]

    def laid_out(factor: Any, shape: tuple[int, ...]) -> Any:  # rows one after the other in memory
        factor = xp.concat([factor, xp.zeros((more, factor.shape[1]), dtype=weights.dtype)]) if more else factor
        return reshape(reshape(factor, -1), *shape)

    P, Q = root * transpose(left)[:rank, :], root * right[:rank, :]
    return laid_out(P, (rank, n_out)), laid_out(Q, (rank, *weights.shape[1:]))


@dataclass(frozen=True, eq=False)
class KolenPollack(Mirror):
    r"""Learn with the same products as the weights: :math:`\dot Q = h (P\delta)^\top - \lambda Q`.

    The mismatch :math:`Q - W^\top P^\top` decays as :math:`e^{-\lambda t}` while P rests (equal rates, updates linear
    in the gradient): mirroring without transport of weights.

    Parameters
    ----------
    rate : float
        Rate relative to the forward weights; 1 is what mirrors exactly.
    start : {"random", "aligned", "svd"} or array_like shaped like the kernel
        Independent of the weights; the mirror of the weights at the start; P and Q from the truncated singular value
        decomposition of the weights, as for :class:`Normative`, whatever start the reader has; or the kernel itself.
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
        _keep_start(self, ("random", "aligned", "svd"))

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start."""
        return _follower(self, layer, P, weights, shape, rng)

    def gradient(self, view: View) -> Any:
        r"""Return the gradient that the weights have, seen through P: :math:`P\,\partial_W` where that costs less."""
        P, found = view.channel.filters, view.gradient
        if found is not None and P is None:
            return found
        if found is not None and math.prod(view.delta.shape[P.ndim - 2 : -1]) > view.delta.shape[-1]:
            return view.layer.compose(P, found)
        return view.layer.grad(view.channel.Q, view.cache, view.z)


@dataclass(frozen=True, eq=False)
class WeightMirror(Mirror):
    r"""Follow the weights by sending noise through them: :math:`\dot Q = \gamma (W^\top P^\top - Q)`.

    :math:`W^\top P^\top = \langle\xi\,(PW\xi)^\top\rangle` is the average product of noise :math:`\xi` on the layer's
    input and the channel's response to it (for a convolution, over positions as well).

    Parameters
    ----------
    rate : float
        :math:`\gamma`, relative to the rate of the forward weights.
    start : {"random", "aligned", "svd"} or array_like shaped like the kernel
        As in :class:`KolenPollack`.
    scale : float, optional
        As in :class:`KolenPollack`.
    probes : int, optional
        Number of noise inputs in a step (in training only), mixtures of the layer's unit probes with independent
        Gaussian coefficients: an unbiased estimate. None sends the unit probes themselves, the exact average.

    References
    ----------
    :cite:t:`akrout2019`.
    """

    rate: float = 1.0
    start: Any = "random"
    scale: float | None = None
    probes: int | None = None
    name: ClassVar[str] = "weight_mirror"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)
        _keep_start(self, ("random", "aligned", "svd"))
        if self.probes is not None:
            integer("probes", self.probes, at_least=1)

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start, as :class:`KolenPollack` does."""
        return _follower(self, layer, P, weights, shape, rng)

    def gradient(self, view: View) -> Any:
        """Return :math:`Q - P W`, P W being what noise through the layer shows."""
        x, P = self._noise(view), view.channel.filters
        response = view.forward(x)
        z = response if P is None else rows(response, transpose(P))
        return view.channel.Q - view.layer.grad(view.channel.Q, x, z)

    def _noise(self, view: View) -> Any:
        xp = namespace(view.cache)
        units = view.layer.probes(xp, view.channel.Q.dtype)
        if self.probes is None:
            return units
        mixture = _needed(view.key, "probes").normal((self.probes, units.shape[0]), units) / self.probes**0.5
        return reshape(mixture @ reshape(units, units.shape[0], -1), *mixture.shape[:-1], *units.shape[1:])


@dataclass(frozen=True)
class Normative(Mirror):
    r"""Descend :math:`\tfrac12\|P^\top Q - W\|^2` from the truncated singular value decomposition of W (code shapes).

    The start is shared evenly, :math:`P = \sqrt{S_r}\,U_r^\top` and :math:`Q = \sqrt{S_r}\,V_r^\top`, which puts reader
    and mirror on the same time scale. Uses the forward weights.

    Parameters
    ----------
    rate : float
        Rate relative to the forward weights.
    restart_every : int, optional
        Start P and Q again, from the decomposition of the present weights, after every so many steps (in training
        only; in the paper's vision transformer, half an epoch); None never does.
    """

    rate: float = 1.0
    restart_every: int | None = None
    name: ClassVar[str] = "normative"
    learns: ClassVar[bool] = True
    transports_weights: ClassVar[bool] = True
    sets_reader: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)
        if self.restart_every is not None:
            integer("restart_every", self.restart_every, at_least=1)

    @property
    def capturable(self) -> bool:
        """Whether all steps are alike: none starts again."""
        return self.restart_every is None

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start."""
        return Channel(*_factors(weights, shape[0]))

    def carry(self, view: View) -> Any:
        """Return the error at the layer's input; the perfect mirror, which it could see, is not made for that."""
        return view.layer.pull(view.channel.Q, view.cache, view.z)

    def gradient(self, view: View) -> Any:
        """Return :math:`P (P^T Q - W)`, shaped like Q."""
        return view.layer.compose(view.channel.P, view.residual)

    def restarted(self, layer: Layer, channel: Channel, weights: Any, step: int) -> Channel | None:
        """Return P and Q of the present weights when it is time to."""
        if self.restart_every is None or step % self.restart_every:
            return None
        P, Q = _factors(weights, channel.P.shape[0])
        return channel._replace(P=P, Q=Q)
