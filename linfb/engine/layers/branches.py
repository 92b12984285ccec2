"""Branches: three marks in a tuple of layers that make a sum of two ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from linfb._threads import add

__all__ = ["Fork", "Join", "Passed", "Swap", "residual"]


class _Mark:
    """A place in a tuple of layers, without weights."""

    def initial_weights(self, rng: Any) -> None:
        """Return None: there are no weights."""


@dataclass(frozen=True)
class Fork(_Mark):
    """Lay a copy of the input aside."""

    def ahead(self, x: Any, aside: list[Any], sum_of: Callable[[Any, Any], Any] = add) -> Any:
        """Return the input."""
        aside.append(x)
        return x

    def back(self, delta: Any, aside: list[Any], direct: bool) -> Any:
        """Return the sum of the errors of both ways; under a direct rule that of the branch alone."""
        other = aside.pop()
        return delta if direct else add(delta, other)


@dataclass(frozen=True)
class Swap(_Mark):
    """Exchange what is at work with what was laid aside: the next layers act on the other way."""

    def ahead(self, x: Any, aside: list[Any], sum_of: Callable[[Any, Any], Any] = add) -> Any:
        """Return what was laid aside."""
        other = aside.pop()
        aside.append(x)
        return other

    def back(self, delta: Any, aside: list[Any], direct: bool) -> Any:
        """Return the error that was laid aside."""
        return self.ahead(delta, aside)


@dataclass(frozen=True)
class Join(_Mark):
    """Add what was laid aside."""

    def ahead(self, x: Any, aside: list[Any], sum_of: Callable[[Any, Any], Any] = add) -> Any:
        """Return the sum of both ways."""
        return sum_of(x, aside.pop())

    def back(self, delta: Any, aside: list[Any], direct: bool) -> Any:
        """Return the error, which goes both ways."""
        aside.append(delta)
        return delta


@dataclass(frozen=True)
class Passed(_Mark):
    """A place whose layer is done together with the one before it (:mod:`linfb.engine.fusing`)."""

    def ahead(self, x: Any, aside: list[Any], sum_of: Callable[[Any, Any], Any] = add) -> Any:
        """Return the input."""
        return x

    def back(self, delta: Any, aside: list[Any], direct: bool) -> Any:
        """Return the error."""
        return delta


def residual(*branch: Any, shortcut: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """Return the layers of ``x + branch(x)``, or of ``shortcut(x) + branch(x)``.

    Parameters
    ----------
    *branch : layers
    shortcut : tuple of layers
        On the other way; nothing by default.

    Notes
    -----
    Errors go both ways down, through the skip connection as they are. Direct rules bring an error to every kernel
    layer by itself: there the skip connection carries nothing, and what leaves a block downwards is the error at the
    input of its branch.

    Examples
    --------
    >>> from linfb.engine.layers import ReLU
    >>> residual(ReLU())
    (Fork(), ReLU(), Join())
    """
    other = (Swap(), *shortcut) if shortcut else ()
    return Fork(), *branch, *other, Join()
