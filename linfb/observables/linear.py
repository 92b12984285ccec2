"""Observables of linear networks by name: each says the dimensions of what it returns beside the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

from linfb.backend import namespace, transpose
from linfb.observables import measures
from linfb.tasks import Task

__all__ = ["NAMED", "Observable", "Snapshot"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A linear network under a rule at one time, for all runs at once.

    Attributes
    ----------
    task : Task
    rule : Rule
        That of the first run, where ranks or rates vary.
    weights : tuple of array, shapes (run, out, in)
        W_1 ... W_L.
    channels : tuple of Channel
        The feedback below W_2 ... W_L, arrays with a leading run axis.
    start : Snapshot or None
        The state at time 0; None if this is it.
    passes : callable
        Returns the forward and backward pass on the task's moment set (activities, carried errors, errors read).
    velocities : callable
        Returns the time derivatives of the weights.
    """

    task: Task
    rule: Any
    weights: tuple[Any, ...]
    channels: tuple[Any, ...]
    start: Snapshot | None
    passes: Callable[[], Any]
    velocities: Callable[[], tuple[Any, ...]]

    @property
    def xp(self) -> Any:
        """The array namespace of the weights."""
        return namespace(*self.weights)

    @cached_property
    def map(self) -> Any:
        """The network's map W_L ... W_1, shape (run, out, in)."""
        return self.downstream(0)

    def downstream(self, layer: int, below: int = 0) -> Any:
        """Return the map from the output of layer `layer` (0: the inputs) to the output, or to so many layers below."""
        *between, product = self.weights[layer : len(self.weights) - below]
        for weights in reversed(between):
            product = product @ weights
        return product

    @cached_property
    def backward(self) -> Any:
        """The forward and backward pass on the moment set."""
        return self.passes()

    @cached_property
    def true_deltas(self) -> tuple[Any, ...]:
        """The errors at h_1 ... h_{L-1} that backpropagation would carry, shapes (run, sample, width)."""
        error = self.backward.deltas[-1]
        return tuple(error @ self.downstream(layer) for layer in range(1, len(self.weights)))

    @cached_property
    def kernels(self) -> tuple[tuple[Any, Any], ...]:
        """For every channel, the kernel Q it writes through and the perfect mirror of what lies above."""
        pairs = []
        for layer, channel in enumerate(self.channels, start=1):
            rule = self.rule.at(layer)
            ideal = self.weights[layer]
            if rule.direct(layer, len(self.weights)):
                ideal = self.downstream(layer, 0 if rule.source == "network" else 1)
            if channel.P is not None:
                ideal = channel.filters @ ideal
            used = rule.mirror.kernel(channel, ideal)
            pairs.append((0 * ideal if used is None else used, ideal))
        return tuple(pairs)


@runtime_checkable
class HasMap(Protocol):
    """What observables of the map alone need: a :class:`Snapshot`, or theory's prediction."""

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def map(self) -> Any:
        """The network's map, shape (run, out, in)."""

    @property
    def xp(self) -> Any:
        """The array namespace."""


class Observable(NamedTuple):
    """A function of a snapshot and the names of the dimensions of its result, after the leading run axis."""

    measure: Callable[[Snapshot], Any]
    dims: tuple[str, ...] = ()
    of_map: bool = False
    """Whether it depends on the network's map alone, so that theory can predict it."""


def _stack(arrays: list[Any], xp: Any) -> Any:
    return xp.stack(arrays, axis=-1)


def loss(snap: HasMap) -> Any:
    """Return the population loss, half the mean squared error summed over outputs, noise included."""
    xp, task = snap.xp, snap.task
    difference = xp.asarray(task.teacher) - snap.map
    weighted = difference if task.whitened else difference @ xp.asarray(task.Sigma_xx)
    return 0.5 * (xp.sum(weighted * difference, axis=(-2, -1)) + float(task.noise_covariance.trace()))


def mode_strength(snap: HasMap) -> Any:
    """Return u_i^T W Sigma_xx v_i for the task's modes, in units of the singular values, which it learns to equal."""
    xp, task = snap.xp, snap.task
    left, right = xp.asarray(task.left), xp.asarray(task.right)
    return xp.sum((snap.map @ (right if task.whitened else xp.asarray(task.Sigma_xx) @ right)) * left, axis=-2)


def singular_values(snap: HasMap) -> Any:
    """Return all singular values of the network's map in falling order."""
    return snap.xp.linalg.svdvals(snap.map)


def network_map(snap: HasMap) -> Any:
    """Return the network's map."""
    return snap.map


def mirror_alignment(snap: Snapshot) -> Any:
    """Return the cosine between Q and its ideal, P W (under a direct rule P times all weights above)."""
    return _stack([measures.cosine(used, ideal) for used, ideal in snap.kernels], snap.xp)


def error_alignment(snap: Snapshot) -> Any:
    """Return the cosine between the carried error and backpropagation's at every hidden layer."""
    carried = snap.backward.deltas[:-1]
    return _stack([measures.cosine(a, b) for a, b in zip(carried, snap.true_deltas, strict=True)], snap.xp)


def captured_energy(snap: Snapshot) -> Any:
    """Return the share of the error that every channel sees: 1 for the identity, NaN if a narrow one meets no error."""
    pairs = zip(snap.channels, snap.backward.reads, strict=True)
    xp = snap.xp
    whole = xp.ones(snap.weights[0].shape[0])
    return _stack([whole if c.P is None else measures.captured_energy(c.P, read) for c, read in pairs], xp)


def task_overlap(snap: Snapshot) -> Any:
    """Return the mean squared cosine between the output channel's rows and as many leading modes' output directions."""
    xp, P = snap.xp, snap.channels[-1].P
    if P is None:
        return xp.ones(snap.weights[0].shape[0])
    rank = xp.sum(xp.astype(xp.any(P != 0, axis=-1), P.dtype), axis=-1, keepdims=True)  # padding does not count
    leading = xp.astype(xp.arange(snap.task.rank, dtype=P.dtype) < rank, P.dtype)
    return measures.subspace_overlap(P, xp.asarray(snap.task.left) * leading[..., None, :])


def effective_rank(snap: Snapshot) -> Any:
    """Return the participation ratio of every weight matrix."""
    return _stack([measures.participation_ratio(weights) for weights in snap.weights], snap.xp)


def update_rank(snap: Snapshot) -> Any:
    """Return the participation ratio of every weight matrix's update."""
    return _stack([measures.participation_ratio(velocity) for velocity in snap.velocities()], snap.xp)


def _invariants(snap: Snapshot) -> list[Any]:
    values = []
    for layer, channel in enumerate(snap.channels, start=1):
        below, above = snap.weights[layer - 1], snap.weights[layer]
        if snap.rule.source == "network" and above is not snap.weights[-1]:
            values.append(snap.xp.full_like(below, snap.xp.nan))  # layers that do not share their error share no law
            continue
        root = channel.gain**0.5
        P = channel.P if isinstance(root, float) or channel.P is None else root * channel.P
        Q = channel.Q if isinstance(root, float) or channel.Q is None else root * channel.Q
        if snap.rule.mirror.name in ("fixed", "zero"):
            B = 0 * above if Q is None else Q if P is None else transpose(P) @ Q
            values.append(measures.invariant(below, above, B=B))
        else:
            values.append(measures.invariant(below, above, P=P, Q=Q))
    return values


def invariant_drift(snap: Snapshot) -> Any:
    """Return the distance of each layer pair's invariant from its value at time 0 (Frobenius norm).

    Zero at zero weight decay for backpropagation, Kolen-Pollack (at rate 1) and fixed feedback while P rests.
    """
    xp, first = snap.xp, snap.start or snap
    pairs = zip(_invariants(snap), _invariants(first), strict=True)
    return _stack([xp.sqrt(xp.sum((now - then) ** 2, axis=(-2, -1))) for now, then in pairs], xp)


NAMED: dict[str, Observable] = {
    "loss": Observable(loss, (), of_map=True),
    "mode_strength": Observable(mode_strength, ("mode",), of_map=True),
    "singular_values": Observable(singular_values, ("singular_value",), of_map=True),
    "network_map": Observable(network_map, ("out", "in"), of_map=True),
    "mirror_alignment": Observable(mirror_alignment, ("channel",)),
    "error_alignment": Observable(error_alignment, ("channel",)),
    "captured_energy": Observable(captured_energy, ("channel",)),
    "task_overlap": Observable(task_overlap),
    "effective_rank": Observable(effective_rank, ("layer",)),
    "update_rank": Observable(update_rank, ("layer",)),
    "invariant_drift": Observable(invariant_drift, ("channel",)),
}
"""The observables that `observe` knows by name."""
