"""Closed forms: what linear networks with low-dimensional error feedback do, without simulation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "carried_alignment": "random_channels",
    "conserved": "balance",
    "end_point": "fixed_points",
    "exact_map": "exact",
    "expected_learned_fraction": "random_learning",
    "feedback_alignment_end_point": "fixed_points",
    "feedback_alignment_mode": "feedback_alignment",
    "learned_modes": "fixed_points",
    "m_balanced_weights": "balance",
    "mirror_error": "balance",
    "mode_strength": "modes",
    "oja_metric": "oja",
    "overlap_atoms": "random_channels",
    "overlap_cdf": "random_channels",
    "overlap_density": "random_channels",
    "overlap_distribution": "random_channels",
    "predict": "prediction",
    "readout_only_map": "readout",
    "time_to_half": "modes",
    "time_to_half_cdf": "random_learning",
    "time_to_half_quantile": "random_learning",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
