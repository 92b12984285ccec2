"""A learning rule is how the error travels: what it listens to, how it is compressed, how the way back is made.

One function, :func:`transport`, carries the error across one layer for every rule. It works on arrays of any
library and on any layer that offers the functions of :class:`Layer`, in the linear theory and in the engine alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from linfb._checks import choice, integer, real
from linfb._threads import rows
from linfb.backend import Key, Keys, namespace, reshape, transpose

__all__ = ["Channel", "Layer", "Mirror", "Reader", "Rule", "View", "resolve_rank", "transport"]


@runtime_checkable
class Layer(Protocol):
    """The pure functions of a parametrised layer that a rule may use; a kernel is any array shaped like its weights."""

    def forward(self, kernel: Any, x: Any) -> tuple[Any, Any]:
        """Return the output and the cache for :meth:`grad`."""

    def grad(self, kernel: Any, cache: Any, delta: Any) -> Any:
        """Return the gradient of the kernel."""

    def pull(self, kernel: Any, cache: Any, delta: Any) -> Any:
        """Return the error at the input: the adjoint of :meth:`forward`."""

    def compose(self, P: Any, kernel: Any) -> Any:
        """Return the kernel with its output features mapped by P."""

    def contract(self, Q: Any, kernel: Any) -> Any:
        """Return the inner products of the output features of two kernels."""

    def probes(self, xp: Any, dtype: Any) -> Any:
        """Return a complete set of unit inputs: ``grad(K, e, forward(K, e))`` summed over them is K."""


class Channel(NamedTuple):
    """The feedback arrays of one layer, B = Q^T P in code shapes; None where the rule has no such array.

    Attributes
    ----------
    P : array, shape (rank, out) or None
        Reads the error; None is the identity. Connected units read it through :attr:`filters`.
    Q : array shaped like the layer's kernel with `rank` output features, or None
        Writes the error to the layer's input; None where it is computed from the weights.
    gain : float or array
        Constant factor on the carried error.
    M : array, shape (rank, rank) or None
        Connections among the channel's units, for readers that have them.
    """

    P: Any = None
    Q: Any = None
    gain: Any = 1.0
    M: Any = None

    @property
    def filters(self) -> Any:
        """What the units respond to, shape (rank, out): P, or M^-1 P at the rest of connected units; None with P."""
        return self.P if self.M is None else namespace(self.P).linalg.solve(self.M, self.P)


@dataclass(frozen=True)
class View:
    """What the feedback pathway of one layer sees in one step.

    Attributes
    ----------
    layer : Layer
    cache : array
        The layer's input, as its forward pass kept it.
    delta : array, shape (..., batch, out)
        The error that is read: d loss / d output, the loss being an average over `samples`. Features are last; between
        them and the batch there may be positions (of an image or a sequence).
    z : array, shape (..., batch, rank)
        The compressed error, ``delta @ P.T`` for most readers.
    targets : array, shape (batch, out), or None
        Labels, at the output layer only.
    samples : int
        Number of terms that the loss averages.
    channel : Channel
    forward : callable
        The layer's own forward pass with its present weights (sends noise or activity; shows no weights).
    key : Key or None
        Place of this step's random numbers.
    number : int or None
        Number of this step in training, from 1; None outside of it.
    gradient : array or None
        What the layer's weights descend, if the error that is read is that of its output and this is known already.
    weights : array or None
        The layer's weights; None unless the reader or mirror declares that it transports weights.
    """

    layer: Layer
    cache: Any
    delta: Any
    z: Any
    targets: Any
    channel: Channel
    forward: Callable[[Any], Any]
    samples: int
    key: Key | Keys | None = None
    number: int | None = None
    gradient: Any = None
    weights: Any = None
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a function makes, which is called for the first one who asks for this name only."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def perfect(self) -> Any:
        """The kernel of a perfect mirror, P W; None where the weights are not shown."""
        P, W = self.channel.filters, self.weights
        return W if P is None or W is None else self.layer.compose(P, W)

    @property
    def residual(self) -> Any:
        """How far the channel is from a way back through the weights themselves, P^T Q - W, shaped like W."""
        P, Q = self.channel.P, self.channel.Q
        return self.once("residual", lambda: self.layer.compose(transpose(P), Q) - self.weights)

    def flat(self, array: Any) -> Any:
        """Return an array (..., batch, positions, feature) as rows: batch and positions on one axis."""
        lead = array.shape[: self.channel.P.ndim - 2]
        return reshape(array, *lead, -1, array.shape[-1]) if array.ndim > len(lead) + 2 else array


@runtime_checkable
class Reader(Protocol):
    """How the error is compressed: the matrix P. Class attributes say what a reader is; the defaults are below."""

    name: ClassVar[str]
    compresses: ClassVar[bool] = True
    """Whether there is a matrix P, and a rank."""
    learns: ClassVar[bool] = False
    """Whether P moves."""
    decays: ClassVar[bool] = False
    """Whether weight decay acts on P."""
    transports_weights: ClassVar[bool] = False
    """Whether it looks at the forward weights, which a synapse cannot."""
    rate: float = 1.0
    """Rate of P relative to the forward weights."""

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> Any:
        """Return P at the start, shape (rank, out), drawn on the host; None for the identity."""

    def initial_lateral(self, rank: int) -> Any:
        """Return M at the start, shape (rank, rank); None for readers without lateral connections."""
        return None

    def read(self, channel: Channel, delta: Any) -> Any:
        """Return the compressed error, shape (..., batch, rank)."""
        return delta if channel.P is None else rows(delta, transpose(channel.filters))

    def gradient(self, view: View) -> Any:
        """Return what P descends, shape (rank, out)."""
        return None

    def lateral_gradient(self, view: View) -> Any:
        """Return what M descends, shape (rank, rank)."""
        return None


@runtime_checkable
class Mirror(Protocol):
    """How the way back follows the forward weights: the kernel Q. Class attributes as for :class:`Reader`."""

    name: ClassVar[str]
    learns: ClassVar[bool] = False
    decays: ClassVar[bool] = False
    transports_weights: ClassVar[bool] = False
    rate: float = 1.0

    def initial(self, layer: Layer, P: Any, weights: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Channel:
        """Return P and Q at the start, drawn on the host.

        `weights` is None under a direct rule; `shape` is that of the kernel Q. A `gain` that it sets is a factor on
        that of the rule.
        """

    @property
    def sets_reader(self) -> bool:
        """Whether its start sets P as well, from the weights: ``start="svd"``."""
        start = getattr(self, "start", None)
        return isinstance(start, str) and start == "svd"

    def kernel(self, channel: Channel, perfect: Any = None, key: Key | Keys | None = None) -> Any:
        """Return the kernel through which the compressed error is written to the layer's input, by default Q.

        `perfect` is P W, None for mirrors that do not transport weights; `key` the place of this step's random numbers.
        """
        return channel.Q

    def carry(self, view: View) -> Any:
        """Return the error at the layer's input."""
        return view.layer.pull(self.kernel(view.channel, view.perfect, view.key), view.cache, view.z)

    def gradient(self, view: View) -> Any:
        """Return what Q descends, shaped like Q."""
        return None

    def restarted(self, layer: Layer, channel: Channel, weights: Any, step: int) -> Channel | None:
        """Return P and Q to start again from after a step (counted from 1), or None to go on."""
        return None


@dataclass(frozen=True)
class Rule:
    """A learning rule: a source, a reader and a mirror.

    Parameters
    ----------
    name : str
        What the field calls it.
    source : {"above", "network", "hidden"}
        Whether a layer listens to the layer above, to the one error of the network ("direct" rules), or, below the
        readout, to the error of the last hidden layer.
    reader : Reader
        How the error is compressed, see :mod:`linfb.rules.readers`.
    mirror : Mirror
        How the way back follows the forward weights, see :mod:`linfb.rules.mirrors`.
    rank : int, float or mapping, optional
        Width of the channel: a number, a fraction in (0, 1) of the width that is read, or a mapping from layer index
        to either. A plain number beyond a layer's width is capped there and reported; one set for a layer by a mapping
        is an error. None for readers that do not compress.
    gain : {"none", "full_rank"}
        "full_rank" multiplies the carried error by sqrt(out / rank), so that the norm of B does not fall with its rank
        and rank is not confounded with step size.
    layers : collection of int, optional
        Indices (from 0, among the kernel layers) of those that carry errors to their input by this rule; the others
        do backpropagation. None: all of them.

    Raises
    ------
    TypeError, ValueError
        For unknown names, a missing or superfluous rank, or a combination that does not exist.
    """

    name: str
    source: str
    reader: Reader
    mirror: Mirror
    rank: Any = None
    gain: str = "none"
    layers: Any = None
    transports_weights: bool = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be text, got {self.name!r}")
        choice("source", self.source, ("above", "network", "hidden"))
        choice("gain", self.gain, ("none", "full_rank"))
        for argument, value, kind in (("reader", self.reader, Reader), ("mirror", self.mirror, Mirror)):
            if isinstance(value, type) or not isinstance(value, kind):
                raise TypeError(
                    f"{argument} must be a {argument} object such as linfb.rules.{argument}s offers, got {value!r}"
                )
        object.__setattr__(self, "transports_weights", self.reader.transports_weights or self.mirror.transports_weights)
        if self.reader.compresses and self.rank is None:
            raise ValueError(f"rank must be given: the reader {self.reader.name!r} compresses the error")
        if not self.reader.compresses and self.rank is not None:
            raise ValueError(f"rank must be None: the reader {self.reader.name!r} does not compress the error")
        if self.layers is not None:
            object.__setattr__(self, "layers", _layer_indices(self.layers))
        if self.rank is not None:
            specs = self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]
            for spec in specs:
                _check_rank(spec)
        if self.source != "above" and (self.transports_weights or self.mirror.name == "weight_mirror"):
            raise ValueError(
                f"source={self.source!r} has no forward weights of its own to follow: reader {self.reader.name!r} and "
                f"mirror {self.mirror.name!r} need source='above'"
            )
        if (self.reader.name == "normative") != (self.mirror.name == "normative"):
            raise ValueError("reader and mirror 'normative' descend one objective and go together")
        if self.reader.name == "local" and self.mirror.name in ("exact", "zero", "sign"):
            raise ValueError(f"reader 'local' needs a mirror with a kernel Q, not {self.mirror.name!r}")
        if self.mirror.sets_reader and (self.source != "above" or not self.reader.compresses):
            raise ValueError(
                f"start of the mirror 'svd' sets P and Q from the weights: it needs source='above' (got "
                f"{self.source!r}) and a reader that compresses (got {self.reader.name!r})"
            )

    def at(self, layer: int) -> Rule:
        """Return the rule by which a kernel layer carries errors to its input: this one, or backpropagation."""
        return self if self.layers is None or layer in self.layers else _backpropagation()

    def direct(self, layer: int, n_layers: int) -> bool:
        """Return whether a kernel layer (of so many) hands on an error of the network, not of its own output."""
        return self.at(layer).source == "network" or (self.at(layer).source == "hidden" and layer < n_layers - 1)


@cache
def _backpropagation() -> Rule:
    from linfb.rules import backpropagation

    return backpropagation()


def _layer_indices(layers: Any) -> tuple[int, ...]:
    if isinstance(layers, str) or not isinstance(layers, Collection):
        raise TypeError(f"layers must be a collection of indices of kernel layers, got {layers!r}")
    return tuple(sorted({integer("layers", layer, at_least=1) for layer in layers}))


def _check_rank(spec: Any) -> None:
    if isinstance(spec, float):
        real("rank (a fraction of the width)", spec, above=0.0, below=1.0)
    else:
        integer("rank", spec, at_least=1)


def resolve_rank(rank: Any, layer: int, width: int, blocks: int = 1) -> tuple[int, bool]:
    """Return the rank of one layer's channel and whether a global rank had to be capped there.

    Parameters
    ----------
    rank : int, float or mapping
        As in :class:`Rule`.
    layer : int
        Index of the layer whose output error is read.
    width : int
        Number of features that are read.
    blocks : int
        Number of parts of the layer's output (queries, keys and values); a plain number counts for each of them.

    Raises
    ------
    ValueError
        If a mapping lacks the layer, or names a rank beyond its width.
    """
    explicit = isinstance(rank, Mapping)
    if explicit:
        if layer not in rank:
            raise ValueError(f"rank (a mapping) has no entry for layer {layer}; it has {sorted(rank)}")
        rank = rank[layer]
    if isinstance(rank, float):
        return max(1, math.floor(rank * width + 0.5)), False
    rank = rank if explicit else rank * blocks
    if rank <= width:
        return int(rank), False
    if explicit:
        raise ValueError(f"rank of layer {layer} is {rank}, more than the {width} features it reads")
    return width, True


def transport(
    rule: Rule,
    layer: Layer,
    weights: Any,
    channel: Channel,
    cache: Any,
    delta: Any,
    targets: Any = None,
    *,
    samples: int | None = None,
    key: Key | Keys | None = None,
    number: int | None = None,
    gradient: Any = None,
) -> tuple[Any, Channel]:
    """Carry an error across one layer, and say what the layer's feedback arrays descend.

    Parameters
    ----------
    rule : Rule
    layer : Layer
        The layer's pure functions.
    weights : array
        Its kernel. Only readers and mirrors that declare it get to see it.
    channel : Channel
        Its feedback arrays.
    cache : array
        What its forward pass kept.
    delta : array, shape (..., batch, out)
        The error to read: of the layer's output, or the network's under a direct rule.
    targets : array, optional
        Labels, where `delta` is the network's error.
    samples : int, optional
        Number of terms that the loss averages; None takes the rows of `delta`.
    key : Key, optional
        Place of this step's random numbers, for mirrors that draw any.
    number : int, optional
        Number of this step in training, from 1.
    gradient : array, optional
        What the layer's weights descend, where `delta` is the error of its output: mirrors learn from it for less.

    Returns
    -------
    delta_in : array
        The error at the layer's input.
    moves : Channel
        What P, Q and M descend (None for an array that does not learn).
    """
    samples = delta.shape[-2] if samples is None else samples
    z = rule.reader.read(channel, delta)
    blind = View(
        layer, cache, delta, z, targets, channel, lambda x: layer.forward(weights, x)[0], samples, key, number, gradient
    )
    seeing = replace(blind, weights=weights) if rule.transports_weights else blind
    reader_view = seeing if rule.reader.transports_weights else blind
    mirror_view = seeing if rule.mirror.transports_weights else blind
    carried = rule.mirror.carry(mirror_view)
    if not (isinstance(channel.gain, float) and channel.gain == 1.0):
        gain = channel.gain
        if not isinstance(gain, float) and carried.ndim > 3:  # one per run, shape (run, 1, 1)
            gain = reshape(gain, -1, *(1,) * (carried.ndim - 1))
        carried = gain * carried
    moves = Channel(
        P=rule.reader.gradient(reader_view) if rule.reader.learns else None,
        Q=rule.mirror.gradient(mirror_view) if rule.mirror.learns else None,
        M=None if channel.M is None else rule.reader.lateral_gradient(reader_view),
    )
    return carried, moves
