"""Which points a sweep visits. A design is a list of points; a point maps fields to values.

Designs are put one after the other with ``+``, and combined with :func:`crossed`.

>>> crossed(grid(rank=[1, 2]), zipped(rule=["low-rank", "local"], learning_rate=[1e-3, 1e-2]))[-1]
{'rank': 2, 'rule': 'local', 'learning_rate': 0.01}
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from linfb._checks import integer, real
from linfb.backend import stream

__all__ = [
    "Choice", "Distribution", "Integers", "LogUniform", "Uniform", "crossed", "distribution", "grid", "random", "value",
    "values", "zipped",
]  # fmt: skip

Point = dict[str, Any]


def grid(**values: Iterable[Any]) -> list[Point]:
    """Return a point for every combination of values, the last field changing fastest.

    Parameters
    ----------
    **values : iterable
        From field to the values it takes; ``seed`` is a field too.

    Raises
    ------
    ValueError
        If the values of a field are not several ones; the message names the field.

    Examples
    --------
    >>> grid(rank=[1, 4], seed=range(2))
    [{'rank': 1, 'seed': 0}, {'rank': 1, 'seed': 1}, {'rank': 4, 'seed': 0}, {'rank': 4, 'seed': 1}]
    """
    lists = _listed(values)
    return [dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())]


def zipped(**values: Iterable[Any]) -> list[Point]:
    """Return a point for the first value of every field, one for the second, and so on.

    Parameters
    ----------
    **values : iterable
        From field to as many values as the other fields have.

    Raises
    ------
    ValueError
        If fields have different numbers of values.

    Examples
    --------
    >>> zipped(rule=["bp", "low-rank"], learning_rate=[1e-3, 3e-3])
    [{'rule': 'bp', 'learning_rate': 0.001}, {'rule': 'low-rank', 'learning_rate': 0.003}]
    """
    lists = _listed(values)
    lengths = {name: len(entries) for name, entries in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zipped fields must have as many values each, got {lengths}")
    return [dict(zip(lists, point, strict=True)) for point in zip(*lists.values(), strict=True)]


def random(n: int, /, seed: int = 0, **distributions: Distribution) -> list[Point]:
    """Return points drawn at random.

    Parameters
    ----------
    n : int
        Number of points. A larger one keeps the points of a smaller one as its first.
    seed : int
        Of the draws. Runs' own seeds are no random field: cross the design with ``grid(seed=...)``.
    **distributions : Distribution
        From field to what its values are drawn from; what one field gets does not depend on the others.

    Examples
    --------
    >>> points = random(3, learning_rate=LogUniform(1e-4, 1e-1), rank=Integers(1, 8))
    >>> points[:2] == random(2, rank=Integers(1, 8), learning_rate=LogUniform(1e-4, 1e-1))
    True
    >>> all(1e-4 <= point["learning_rate"] <= 1e-1 and 1 <= point["rank"] <= 8 for point in points)
    True
    """
    integer("n", n, at_least=1)
    integer("seed", seed, at_least=0)
    for name, distribution in distributions.items():
        if isinstance(distribution, type) or not callable(getattr(distribution, "draw", None)):
            raise ValueError(f"{name} must have a distribution such as Uniform(0, 1), got {distribution!r}")
    drawn = {name: one.draw(stream(seed, "sweep", name), n) for name, one in distributions.items()}
    return [{name: values[i] for name, values in drawn.items()} for i in range(n)]


def crossed(*designs: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return a point for every combination of points, one of each design.

    Raises
    ------
    ValueError
        If two designs set the same field.

    Examples
    --------
    >>> len(crossed(random(5, learning_rate=Uniform(0.0, 1.0)), grid(seed=range(3))))
    15
    """
    points: list[Point] = [{}]
    for design in designs:
        if not design:
            raise ValueError("a design that is combined must hold at least one point")
        if twice := sorted(set().union(*points) & set().union(*design)):
            raise ValueError(f"{twice[0]} is set by two of the designs that are combined")
        points = [{**one, **other} for one in points for other in design]
    return points


class Distribution(Protocol):
    """What values of a field are drawn from."""

    def draw(self, rng: np.random.Generator, n: int) -> list[Any]:
        """Return n independent values, the first ones the same for every n."""


@dataclass(frozen=True)
class Uniform:
    """Real numbers between two, all alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        real("high", self.high, at_least=real("low", self.low))

    def draw(self, rng: np.random.Generator, n: int) -> list[float]:
        """Return n independent values."""
        return rng.uniform(self.low, self.high, n).tolist()


@dataclass(frozen=True)
class LogUniform:
    """Positive numbers between two, whose logarithms are all alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        real("high", self.high, at_least=real("low", self.low, above=0.0))

    def draw(self, rng: np.random.Generator, n: int) -> list[float]:
        """Return n independent values."""
        drawn = np.exp(rng.uniform(math.log(self.low), math.log(self.high), n))
        return np.clip(drawn, self.low, self.high).tolist()


@dataclass(frozen=True)
class Integers:
    """Whole numbers from one to another, both included, all alike."""

    low: int
    high: int

    def __post_init__(self) -> None:
        integer("high", self.high, at_least=integer("low", self.low))

    def draw(self, rng: np.random.Generator, n: int) -> list[int]:
        """Return n independent values."""
        return [int(rng.integers(self.low, self.high, endpoint=True)) for _ in range(n)]


@dataclass(frozen=True, init=False)
class Choice:
    """One of some values, all alike.

    >>> Choice("relu", "tanh").values
    ('relu', 'tanh')
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if not values:
            raise ValueError("values of Choice must be at least one")
        object.__setattr__(self, "values", values)

    def draw(self, rng: np.random.Generator, n: int) -> list[Any]:
        """Return n independent values."""
        return [self.values[int(rng.integers(len(self.values)))] for _ in range(n)]


def _listed(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    listed = {}
    for name, entries in values.items():
        if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
            raise ValueError(f"{name} must have a list of values to take, got {entries!r}")
        listed[name] = list(entries)
        if not listed[name]:
            raise ValueError(f"{name} must have at least one value to take")
    return listed


# Words


def value(text: str) -> Any:
    """Return the value that a text stands for: JSON, a list with or without brackets, or the text itself.

    Examples
    --------
    >>> value("64,64"), value("[flip,crop:padding=4]"), value("oja:on=labels,rate=5")
    ([64, 64], ['flip', 'crop:padding=4'], 'oja:on=labels,rate=5')
    """
    for candidate in (text, f"[{text}]"):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return values(text[1:-1]) if text.startswith("[") and text.endswith("]") else text


def values(text: str) -> list[Any]:
    """Return the values that a text stands for: several with commas between them, or whole numbers from one to another.

    A comma within brackets or quotes is part of a value.

    Examples
    --------
    >>> values("bp,low-rank"), values("0..3"), values('[64,64],[128],"vit:width=64,depth=2"')
    (['bp', 'low-rank'], [0, 1, 2, 3], [[64, 64], [128], 'vit:width=64,depth=2'])
    """
    if span := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text):
        return list(range(int(span[1]), int(span[2]) + 1))
    entries = re.findall(r'(?:"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[^,])+', text)
    return [value(entry.strip()) for entry in entries]


def distribution(text: str) -> Distribution:
    """Return the distribution that a text stands for.

    Examples
    --------
    >>> distribution("loguniform:1e-4,1e-2"), distribution("choice:bp,low-rank")
    (LogUniform(low=0.0001, high=0.01), Choice(values=('bp', 'low-rank')))
    """
    kinds: dict[str, Any] = {"uniform": Uniform, "loguniform": LogUniform, "integers": Integers, "choice": Choice}
    name, _, arguments = text.partition(":")
    if name not in kinds:
        raise ValueError(f"distribution must be one of {', '.join(kinds)}, with its values after a colon, got {text!r}")
    try:
        return kinds[name](*values(arguments))
    except TypeError as error:
        raise ValueError(f"distribution {text!r}: {error}") from error
