"""Errors that carry what was computed before they were raised."""

from __future__ import annotations

from typing import Any

__all__ = ["DivergenceError", "InterruptedRun", "NoClosedFormError"]


class DivergenceError(FloatingPointError):
    """A state or loss stopped being finite.

    Attributes
    ----------
    partial : xarray.Dataset or None
        What was computed before.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class InterruptedRun(KeyboardInterrupt):
    """The user stopped a run.

    Attributes
    ----------
    partial : xarray.Dataset or None
        What was computed before.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class NoClosedFormError(ValueError):
    """Theory has no closed form for what was asked; the message names the assumption that fails."""
