"""The registry: derivations by name, in the order of their modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from derivations.core import Derivation

REGISTRY: dict[str, Callable[[], Derivation]] = {}


def derivation(function: Callable[[], Derivation]) -> Callable[[], Derivation]:
    """Register a function that returns a derivation under the function's name."""
    name = function.__name__
    if name in REGISTRY:
        raise ValueError(f"two derivations are named {name}")
    REGISTRY[name] = function
    return function


def derive(name: str) -> Derivation:
    """Return the derivation of that name, or say which names exist."""
    if name not in REGISTRY:
        raise ValueError(f"unknown derivation {name!r}; known: {', '.join(REGISTRY)}")
    result = REGISTRY[name]()
    if result.name != name:
        raise ValueError(f"derivation {name} calls itself {result.name}")
    return result


def derive_all(names: Iterable[str] = ()) -> tuple[Derivation, ...]:
    """Return the named derivations in the given order, or all of them in the order of their registration."""
    return tuple(derive(name) for name in (tuple(names) or tuple(REGISTRY)))
