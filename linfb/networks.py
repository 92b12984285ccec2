r"""Deep linear networks and their starting weights.

A start is a callable that draws weights for given widths; the balanced ones need to know the task or the channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np

from linfb._checks import integer, real, real_array
from linfb.backend import stream
from linfb.tasks import Task

__all__ = ["Aligned", "Balanced", "Given", "LinearNetwork", "SmallRandom", "Start"]


@runtime_checkable
class Start(Protocol):
    """How the weights of a network are drawn, on the host."""

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return the weights W_1 ... W_L, shapes (widths[l], widths[l - 1]).

        `readers` holds the effective P (rank, out) of the channel below each of W_2 ... W_L; None is the identity.
        """


@dataclass(frozen=True)
class SmallRandom:
    """Independent Gaussian entries of standard deviation ``scale / sqrt(fan_in)``.

    Parameters
    ----------
    scale : float
        Typical singular value scale of each layer.
    """

    scale: float = 1e-2

    def __post_init__(self) -> None:
        real("scale", self.scale, at_least=0.0)

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return the weights, see :class:`Start`."""
        pairs = pairwise(widths)
        return tuple(self.scale / np.sqrt(n_in) * rng.standard_normal((n_out, n_in)) for n_in, n_out in pairs)


@dataclass(frozen=True)
class Balanced:
    r"""Random weights on the invariant manifold of the rule.

    .. math:: W_l W_l^\top = W_{l+1}^\top M_l W_{l+1},\qquad M_l = P_l^\top P_l

    so M-balanced for the channels of the rule, and balanced in the usual sense under backpropagation (M = I).

    Parameters
    ----------
    scale : float
        Typical singular value of the last layer.

    Notes
    -----
    Built from the last layer down. The first factor of the last layer has rank ``min(widths)``, so that every layer
    below can meet its condition.
    """

    scale: float = 1e-2

    def __post_init__(self) -> None:
        real("scale", self.scale, at_least=0.0)

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return the weights, see :class:`Start`."""
        core = min(widths)
        left, right = (rng.standard_normal(shape) for shape in ((widths[-1], core), (core, widths[-2])))
        weights = [self.scale / np.sqrt(core * widths[-2]) * left @ right]
        for layer in range(len(widths) - 2, 0, -1):
            P, above = readers[layer - 1], weights[0]
            seen = above if P is None else P @ above
            _, values, vectors = np.linalg.svd(seen, full_matrices=False)
            rank = min(core, len(values))
            basis = np.linalg.qr(rng.standard_normal((widths[layer - 1], rank)))[0]
            weights.insert(0, (vectors[:rank].T * values[:rank]) @ basis.T)
        return tuple(weights)


@dataclass(frozen=True)
class Aligned:
    r"""Weights along the task's singular vectors, so that every mode is a scalar problem.

    Mode i starts with :math:`u_i^\top W_L\cdots W_1 v_i = c_0`, shared evenly over the layers, through random
    orthonormal directions of the hidden layers.

    Parameters
    ----------
    strength : float
        The mode strength at the start, :math:`c_0 \ge 0`.
    """

    strength: float = 1e-3

    def __post_init__(self) -> None:
        real("strength", self.strength, at_least=0.0)

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return the weights, see :class:`Start`."""
        modes = min(task.rank, *widths[1:-1])
        bases = [task.right[:, :modes]]
        bases += [np.linalg.qr(rng.standard_normal((width, modes)))[0] for width in widths[1:-1]]
        bases.append(task.left[:, :modes])
        share = self.strength ** (1 / (len(widths) - 1))
        return tuple(share * above @ below.T for below, above in pairwise(bases))


@dataclass(frozen=True, eq=False)
class Given:
    """The weights themselves.

    Parameters
    ----------
    weights : sequence of array_like
        W_1 ... W_L, shapes (widths[l], widths[l - 1]).
    """

    weights: Sequence[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Iterable):
            raise TypeError(f"weights must be a sequence of matrices, got {self.weights!r}")
        arrays = (real_array(f"weights[{i}]", weight, ("out", "in")) for i, weight in enumerate(self.weights))
        object.__setattr__(self, "weights", tuple(np.array(array) for array in arrays))

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return the weights, see :class:`Start`."""
        return tuple(np.array(weight) for weight in self.weights)


@dataclass(frozen=True)
class LinearNetwork:
    """A linear network of any depth from two layers of weights on.

    Parameters
    ----------
    widths : sequence of int
        Numbers of units from input to output, (n_in, hidden, ..., n_out), at least three.
    start : Start
        How the weights are drawn: :class:`SmallRandom`, :class:`Balanced`, :class:`Aligned` or :class:`Given`.

    Raises
    ------
    TypeError, ValueError
        For fewer than three widths or widths that are not positive integers.

    Examples
    --------
    >>> LinearNetwork((8, 5, 4)).depth
    2
    """

    widths: tuple[int, ...]
    start: Start = SmallRandom()

    def __post_init__(self) -> None:
        if isinstance(self.widths, str) or not isinstance(self.widths, Sequence):
            raise TypeError(f"widths must be a sequence of integers, got {self.widths!r}")
        widths = tuple(integer(f"widths[{i}]", width, at_least=1) for i, width in enumerate(self.widths))
        if len(widths) < 3:
            raise ValueError(f"widths must have at least three entries (two layers of weights), got {widths}")
        if not callable(self.start) or isinstance(self.start, type):
            raise TypeError(f"start must be a start such as SmallRandom(), got {self.start!r}")
        object.__setattr__(self, "widths", widths)

    @property
    def depth(self) -> int:
        """Number of layers of weights."""
        return len(self.widths) - 1

    def draw(self, task: Task, readers: Sequence[np.ndarray | None], *, seed: int) -> tuple[np.ndarray, ...]:
        """Return the starting weights of one run from its stream "weights"; `readers` as in :class:`Start`."""
        weights = tuple(self.start(self.widths, task, readers, stream(seed, "weights")))
        shapes = tuple(zip(self.widths[1:], self.widths[:-1], strict=True))
        found = tuple(np.shape(weight) for weight in weights)
        if found != shapes:
            raise ValueError(f"start: weights have shapes {found}, expected {shapes} for widths {self.widths}")
        return weights

    def fits(self, task: Task) -> None:
        """Raise a ValueError if the network's ends do not have the task's widths."""
        if (self.widths[0], self.widths[-1]) != (task.n_in, task.n_out):
            raise ValueError(
                f"network widths {self.widths} do not fit the task: expected {task.n_in} inputs, {task.n_out} outputs"
            )
