"""Closed forms: what linear networks with low-dimensional error feedback do, without simulation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "conserved": "balance",
    "deep_balanced_layers": "deep",
    "deep_balanced_time": "deep",
    "deep_conserved": "deep",
    "deep_critical_decay": "deep",
    "deep_mode": "deep",
    "deep_rest_points": "deep",
    "deep_slowdown": "deep",
    "deep_time": "deep",
    "end_point": "fixed_points",
    "exact_map": "exact",
    "excess_loss": "noise",
    "expected_learned_fraction": "random_learning",
    "feedback_alignment_end_point": "fixed_points",
    "feedback_alignment_mode": "feedback_alignment",
    "largest_step": "noise",
    "learned_modes": "fixed_points",
    "m_balanced_weights": "balance",
    "mirror_error": "balance",
    "mode_excess_loss": "noise",
    "mode_strength": "modes",
    "noise_balance": "noise",
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
    "typical_deep_slowdown": "deep",
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
