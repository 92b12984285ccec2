"""The feedback arrays of a whole network at the start, drawn on the host: the same for linear theory and engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from linfb.backend import stream
from linfb.rules.base import Channel, Rule, resolve_rank

__all__ = ["InitialChannels", "initial_channels"]


class InitialChannels(NamedTuple):
    """What :func:`initial_channels` returns.

    Attributes
    ----------
    channels : tuple of Channel or None
        One per kernel layer; None for the first, which carries no error further.
    ranks : dict
        From the index of a layer to the width of the channel into its input.
    capped : tuple of int
        Layers where a plain rank was more than the width that is read.
    """

    channels: tuple[Channel | None, ...]
    ranks: dict[int, int]
    capped: tuple[int, ...]


def initial_channels(
    rule: Rule, layers: Sequence[Any], weights: Sequence[Any], *, seed: int, n_error: int
) -> InitialChannels:
    """Draw the feedback arrays of a network of kernel layers.

    The channel of layer l reads the error at that layer's output (under a direct rule, the network's error) and
    writes to its input. P comes from ``stream(seed, "P", l)``, Q from ``stream(seed, "Q", l)``.

    Parameters
    ----------
    rule : Rule
    layers : sequence of kernel layers
        From the input to the output, each with ``n_in`` and ``n_out``.
    weights : sequence of numpy.ndarray
        Their kernels at the start, shapes (n_out, ...), on the host.
    seed : int
        Seed of the whole run.
    n_error : int
        Width of the network's error.

    Returns
    -------
    InitialChannels
        float64 arrays on the host. A capped rank is also logged as a warning of the logger "linfb".

    Raises
    ------
    ValueError
        If a rank given per layer lacks a layer, names one that has no channel, or is more than the width it reads.

    Examples
    --------
    >>> import numpy as np
    >>> from linfb.engine.layers.dense import Dense
    >>> from linfb.rules import low_rank
    >>> layers, weights = [Dense(5, 4), Dense(4, 3)], [np.ones((4, 5)), np.ones((3, 4))]
    >>> channels, ranks, capped = initial_channels(low_rank(2), layers, weights, seed=0, n_error=3)
    >>> channels[0], channels[1].P.shape, channels[1].Q.shape, ranks, capped
    (None, (2, 3), (2, 4), {1: 2}, ())
    """
    if isinstance(rule.rank, dict) and (unknown := sorted(set(rule.rank) - set(range(1, len(layers))))):
        raise ValueError(
            f"rank (a mapping) names layer {unknown[0]}; the layers with a channel are 1 to {len(layers) - 1}"
        )
    channels: list[Channel | None] = [None]
    ranks: dict[int, int] = {}
    capped: list[int] = []
    for l in range(1, len(layers)):
        width = n_error if rule.source == "network" else layers[l].n_out
        rank, was_capped = (width, False) if rule.rank is None else resolve_rank(rule.rank, l, width)
        ranks[l] = rank
        if was_capped:
            capped.append(l)
            logging.getLogger("linfb").warning("rank %s of layer %d is capped at its width %d", rule.rank, l, width)
        channels.append(_draw(rule, layers[l], weights[l], l, rank, width, seed))
    return InitialChannels(tuple(channels), ranks, tuple(capped))


def _draw(rule: Rule, layer: Any, weights: Any, l: int, rank: int, width: int, seed: int) -> Channel:
    P = rule.reader.initial(rank, width, stream(seed, "P", l))
    visible = None if rule.source == "network" else weights
    channel = rule.mirror.initial(layer, P, visible, (rank, *weights.shape[1:]), stream(seed, "Q", l))
    return channel._replace(gain=math.sqrt(width / rank)) if rule.gain == "full_rank" else channel
