"""Closed forms: what linear networks with low-dimensional error feedback do, without simulation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CommitteeLearning": "committee",
    "committee_learning": "committee",
    "committee_loss": "committee",
    "carried_alignment": "random_channels",
    "conserved": "balance",
    "critical_reader_rate": "turning",
    "critical_reader_rate_at": "turning",
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
    "expected_loss": "random_learning",
    "feedback_alignment_end_point": "fixed_points",
    "feedback_alignment_mode": "feedback_alignment",
    "half_learned_fraction": "random_learning",
    "inverse_overlap_tail": "random_channels",
    "largest_step": "noise",
    "lazy_outputs": "wide",
    "learned_modes": "fixed_points",
    "m_balanced_weights": "balance",
    "mirror_error": "balance",
    "mode_excess_loss": "noise",
    "mode_strength": "modes",
    "modes_learned_by_errors": "turning",
    "multiplexed_times": "multiplexing",
    "noise_balance": "noise",
    "oja_metric": "oja",
    "overlap_atoms": "random_channels",
    "overlap_cdf": "random_channels",
    "overlap_density": "random_channels",
    "overlap_distribution": "random_channels",
    "overlap_moment": "random_channels",
    "phase_boundaries": "random_learning",
    "predict": "prediction",
    "readout_only_map": "readout",
    "rich_imbalance": "unbalanced",
    "tangent_kernels": "wide",
    "time_to_half": "modes",
    "time_to_half_cdf": "random_learning",
    "time_to_half_quantile": "random_learning",
    "turning_exponent": "turning",
    "typical_deep_slowdown": "deep",
    "unbalanced_mode_strength": "unbalanced",
    "visible_error_flow": "turning",
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
