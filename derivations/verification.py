"""Verification: every equation of a derivation must reduce to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy as sp

from derivations.core import Derivation, Rewriting, Step


@dataclass(frozen=True)
class Failure:
    """An equation that did not reduce to zero."""

    number: int
    step: Step
    rewriting: Rewriting
    residual: Any

    def __str__(self) -> str:
        text = str(self.residual)
        short = text if len(text) <= 200 else text[:200] + " ..."
        return (
            f"equation {self.number} ({self.step.text}): not verified {self.rewriting.description}; left over: {short}"
        )


def _vanishes(value: Any) -> bool:
    """Whether a rewritten difference is zero; what is undecided or not a number is not zero."""
    if isinstance(value, sp.MatrixBase):
        return all(entry == 0 for entry in value)
    return bool(value == 0)


def _applied(rewriting: Rewriting, difference: Any) -> Any:
    """Return the rewritten difference, or the reason why it could not be rewritten."""
    try:
        return rewriting.apply(difference)
    except NotImplementedError as error:
        return f"undecided: {error}"


def failures(step: Step, number: int = 1) -> tuple[Failure, ...]:
    """Return the rewritings of a step that do not give zero.

    Examples
    --------
        >>> import sympy as sp
            >>> x = sp.Symbol("x")
        >>> failures(Step("The double angle.", sp.sin(2 * x), 2 * sp.sin(x) * sp.cos(x)))
        ()
        >>> len(failures(Step("A wrong factor.", sp.sin(2 * x), sp.sin(x) * sp.cos(x))))
        1
    """
    difference = step.lhs - step.rhs
    rewritten = ((rewriting, _applied(rewriting, difference)) for rewriting in step.by)
    return tuple(Failure(number, step, rewriting, value) for rewriting, value in rewritten if not _vanishes(value))


def verify(derivation: Derivation) -> tuple[Failure, ...]:
    """Return the equations of a derivation that fail; empty when all hold.

    Raises
    ------
    ValueError
        If the derivation has no equation, or an equation names no rewriting: there is nothing that could fail.
    """
    equations = derivation.equations
    if not equations:
        raise ValueError(f"derivation {derivation.name} has no equation to verify")
    for step in equations:
        if not step.by:
            raise ValueError(f"derivation {derivation.name}: no rewriting verifies the equation {step.text!r}")
    return tuple(failure for number, step in enumerate(equations, 1) for failure in failures(step, number))
