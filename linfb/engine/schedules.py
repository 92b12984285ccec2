"""Learning-rate schedules: from the number of epochs that have passed to a factor on every learning rate.

The number is a float: 2.5 in the middle of the third epoch. A schedule is any such callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from linfb._checks import integer, real

__all__ = ["Constant", "Cosine", "Exponential", "Step", "Warmup"]


@dataclass(frozen=True)
class Constant:
    """The learning rate stays as it is.

    Examples
    --------
    >>> Constant()(2.5)
    1.0
    """

    def __call__(self, epoch: float | int) -> float:
        """Return 1."""
        _passed(epoch)
        return 1.0


@dataclass(frozen=True)
class Exponential:
    r"""Multiply the learning rate by a constant after every epoch, :math:`f = \gamma^{\lfloor e \rfloor}`.

    Parameters
    ----------
    gamma : float
        In (0, 1].

    Examples
    --------
    >>> Exponential(0.5)(2), Exponential(0.5)(2.9)
    (0.25, 0.25)
    """

    gamma: float

    def __post_init__(self) -> None:
        real("gamma", self.gamma, above=0.0, at_most=1.0)

    def __call__(self, epoch: float | int) -> float:
        """Return the factor after `epoch` epochs."""
        return self.gamma ** math.floor(_passed(epoch))


@dataclass(frozen=True)
class Step:
    r"""Multiply the learning rate by a constant now and then, :math:`f = \gamma^{n}` after :math:`n` such times.

    Parameters
    ----------
    gamma : float
        In (0, 1].
    every : float, optional
        Number of epochs from one time to the next.
    milestones : sequence of float, optional
        The times themselves, in epochs from the start, increasing. Either this or `every` is needed.

    Examples
    --------
    >>> [Step(0.5, every=2)(epoch) for epoch in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    >>> [Step(0.5, milestones=(1, 4))(epoch) for epoch in range(6)]
    [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    """

    gamma: float
    every: float | int | None = field(default=None, kw_only=True)
    milestones: tuple[float | int, ...] | list[float | int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        real("gamma", self.gamma, above=0.0, at_most=1.0)
        if (self.every is None) == (self.milestones is None):
            raise ValueError(
                f"Step needs one of every and milestones, got every={self.every!r}, milestones={self.milestones!r}"
            )
        if self.every is not None:
            real("every", self.every, above=0.0)
        if self.milestones is not None:
            times = [real(f"milestones[{i}]", time, above=0.0) for i, time in enumerate(self.milestones)]
            if not times or any(b <= a for a, b in pairwise(times)):
                raise ValueError(f"milestones must be increasing, at least one, got {self.milestones!r}")
            object.__setattr__(self, "milestones", tuple(self.milestones))

    def __call__(self, epoch: float | int) -> float:
        """Return the factor after `epoch` epochs."""
        passed = _passed(epoch)
        if self.every is not None:
            return float(self.gamma ** (passed // self.every))
        return float(self.gamma ** sum(passed >= time for time in self.milestones or ()))


@dataclass(frozen=True)
class Cosine:
    r"""Rise linearly for `warmup` epochs, then fall along half a cosine to zero.

    .. math:: f = \frac{e+1}{w+1}\ (e < w),\qquad f = \tfrac12\Big(1 + \cos\pi\frac{e - w}{E - w}\Big)\ (e \ge w)

    Parameters
    ----------
    epochs : int
        :math:`E`, the length of the whole run; the factor stays zero after it.
    warmup : int
        :math:`w < E`; 0 starts at the top.

    Examples
    --------
    >>> [round(Cosine(5, warmup=1)(epoch), 3) for epoch in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    >>> Cosine(5, warmup=1)(0.5)
    0.75
    """

    epochs: int
    warmup: int = 0

    def __post_init__(self) -> None:
        integer("epochs", self.epochs, at_least=1)
        integer("warmup", self.warmup, at_least=0, at_most=self.epochs - 1)

    def __call__(self, epoch: float | int) -> float:
        """Return the factor after `epoch` epochs."""
        passed = _passed(epoch)
        if passed < self.warmup:
            return (passed + 1) / (self.warmup + 1)
        share = min(1.0, (passed - self.warmup) / (self.epochs - self.warmup))
        return (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Warmup:
    r"""Rise linearly for some epochs to where another schedule starts, then follow it from its start.

    .. math:: f = \frac{e+1}{w+1}\,g(0)\ (e < w),\qquad f = g(e - w)\ (e \ge w)

    Parameters
    ----------
    epochs : float
        :math:`w`, the length of the rise.
    then : callable
        :math:`g`, any schedule; it counts from the end of the rise.

    Examples
    --------
    >>> [Warmup(3, Exponential(0.5))(epoch) for epoch in range(6)]
    [0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
    """

    epochs: float | int
    then: Callable[[float], float] = field(default_factory=Constant)

    def __post_init__(self) -> None:
        real("epochs", self.epochs, at_least=0.0)
        if not callable(self.then):
            raise TypeError(f"then must be a schedule, callable with a number of epochs, got {self.then!r}")

    def __call__(self, epoch: float | int) -> float:
        """Return the factor after `epoch` epochs."""
        passed = _passed(epoch)
        if passed < self.epochs:
            return (passed + 1) / (self.epochs + 1) * self.then(0.0)
        return self.then(passed - self.epochs)


def _passed(epoch: float | int) -> float:
    return real("epoch", epoch, at_least=0.0)
