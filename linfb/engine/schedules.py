"""Learning-rate schedules: from the epoch (counted from 0) to a factor on every learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from linfb._checks import integer, real

__all__ = ["Constant", "Cosine", "Exponential"]


@dataclass(frozen=True)
class Constant:
    """The learning rate stays as it is."""

    def __call__(self, epoch: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Exponential:
    r"""Multiply the learning rate by a constant after every epoch, :math:`f = \gamma^{\text{epoch}}`.

    Parameters
    ----------
    gamma : float
        In (0, 1].

    Examples
    --------
    >>> Exponential(0.5)(2)
    0.25
    """

    gamma: float

    def __post_init__(self) -> None:
        real("gamma", self.gamma, above=0.0, at_most=1.0)

    def __call__(self, epoch: int) -> float:
        """Return the factor of an epoch."""
        return self.gamma**epoch


@dataclass(frozen=True)
class Cosine:
    r"""Rise linearly for `warmup` epochs, then fall along half a cosine to nearly zero.

    .. math:: f = \frac{e+1}{w+1}\ (e < w),\qquad f = \tfrac12\Big(1 + \cos\pi\frac{e - w}{E - w}\Big)\ (e \ge w)

    Parameters
    ----------
    epochs : int
        :math:`E`, the length of the whole run.
    warmup : int
        :math:`w < E`; 0 starts at the top.

    Examples
    --------
    >>> [round(Cosine(5, warmup=1)(epoch), 3) for epoch in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """

    epochs: int
    warmup: int = 0

    def __post_init__(self) -> None:
        integer("epochs", self.epochs, at_least=1)
        integer("warmup", self.warmup, at_least=0, at_most=self.epochs - 1)

    def __call__(self, epoch: int) -> float:
        """Return the factor of an epoch."""
        if epoch < self.warmup:
            return (epoch + 1) / (self.warmup + 1)
        share = min(1.0, (epoch - self.warmup) / (self.epochs - self.warmup))
        return (1 + math.cos(math.pi * share)) / 2
