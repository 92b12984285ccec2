"""Numbers that the host makes anew for every step, as expressions of what changes.

A captured step (:mod:`linfb.engine.graph`) is launched again and again without running its Python code. What its
kernels must know of the host - a learning rate, the state of random numbers - is a :class:`Live` value there: the
function that makes it, kept with its arguments, so that it can be made again for every step and put where they read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Live", "live"]


@dataclass(frozen=True, eq=False)
class Live:
    """A value of the host that is another in every step: a function and its arguments, some of which are live.

    It is no number: whoever computes with it as with one gets a TypeError, not a value of one step for all steps.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def now(self) -> Any:
        """Return the value in the present step."""
        return self.function(*(value.now() if isinstance(value, Live) else value for value in self.arguments))

    @property
    def identity(self) -> tuple[Any, ...]:
        """What is equal for expressions that always have the same value, and can be the key of a mapping."""
        return self.function, *map(_identity, self.arguments)


def _identity(value: Any) -> Any:
    if isinstance(value, Live):
        return value.identity
    return (value.tobytes(), value.shape) if isinstance(value, np.ndarray) else value


def live(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``; if an argument is live, the expression for it.

    Parameters
    ----------
    function : callable
        A pure function with a name: two expressions are the same if their functions are.
    *arguments
        Plain or live.

    Examples
    --------
    >>> clock = {"number": 3}
    >>> number = Live(clock.get, ("number",))
    >>> power = live(pow, 2, number)
    >>> clock["number"] = 5
    >>> power.now(), live(pow, 2, 4)
    (32, 16)
    """
    if any(isinstance(value, Live) for value in arguments):
        return Live(function, arguments)
    return function(*arguments)
