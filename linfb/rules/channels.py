"""The feedback arrays of a whole network at the start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from linfb.backend import stream
from linfb.rules.base import Channel, Rule, resolve_rank

__all__ = ["Readers", "initial_channels", "initial_readers"]

log = logging.getLogger("linfb")


class Readers(NamedTuple):
    """What the channels of a network read with; entry i belongs to the channel below kernel layer i + 1.

    Attributes
    ----------
    P : tuple of (rank, out) array or None
        None is the identity.
    ranks : tuple of int
        The rank of each channel (the full width for the identity).
    capped : tuple of int
        The kernel layers whose width is below the rule's rank, which was capped there.
    gains : tuple of float
        Constant factors on the carried errors.
    """

    P: tuple[Any, ...]
    ranks: tuple[int, ...]
    capped: tuple[int, ...]
    gains: tuple[float, ...]


def initial_readers(rule: Rule, widths: Sequence[int], *, seed: int) -> Readers:
    """Draw the readers of a network, on the host.

    Parameters
    ----------
    rule : Rule
    widths : sequence of int
        Output widths of the kernel layers, the first one included: errors are read at all but the first, or at the
        last one only under a direct rule.
    seed : int
        The run's seed; streams are ``stream(seed, "P", layer)``.
    """
    reads = [widths[-1] if rule.source == "network" else width for width in widths[1:]]
    P, ranks, capped = [], [], []
    for layer, width in enumerate(reads, start=1):
        rank, cut = (width, False) if rule.rank is None else resolve_rank(rule.rank, layer, width)
        if cut:
            capped.append(layer)
        ranks.append(rank)
        P.append(rule.reader.initial(rank, width, stream(seed, "P", layer)))
    gains = [
        (width / rank) ** 0.5 if rule.gain == "full_rank" else 1.0 for width, rank in zip(reads, ranks, strict=True)
    ]
    if capped:
        log.warning("rank %s is capped at the width of kernel layers %s", rule.rank, capped)
    return Readers(tuple(P), tuple(ranks), tuple(capped), tuple(gains))


def initial_channels(
    rule: Rule, layers: Sequence[Any], weights: Sequence[Any], readers: Readers, *, seed: int
) -> tuple[Channel, ...]:
    """Return the channels below all kernel layers but the first, on the host.

    Parameters
    ----------
    rule : Rule
    layers : sequence of Layer
        The kernel layers, from the input on.
    weights : sequence of numpy.ndarray
        Their kernels.
    readers : Readers
        From :func:`initial_readers`.
    seed : int
        The run's seed; streams are ``stream(seed, "Q", layer)``.
    """
    channels = []
    for layer in range(1, len(layers)):
        P, rank = readers.P[layer - 1], readers.ranks[layer - 1]
        shape = (rank, *weights[layer].shape[1:])
        followed = None if rule.source == "network" else weights[layer]
        channel = rule.mirror.initial(layers[layer], P, followed, shape, stream(seed, "Q", layer))
        channels.append(channel._replace(gain=readers.gains[layer - 1]))
    return tuple(channels)
