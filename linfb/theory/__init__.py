"""Closed forms: what linear networks with low-dimensional error feedback do, without simulation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "AdaptiveModes": "adaptive",
    "CommitteeLearning": "committee",
    "adaptive_half_time": "adaptive",
    "adaptive_modes": "adaptive",
    "adaptive_start": "adaptive",
    "capture_period": "capture",
    "capture_rate": "capture",
    "carried_alignment": "random_channels",
    "committee_learning": "committee",
    "committee_loss": "committee",
    "conserved": "balance",
    "critical_reader_rate": "turning",
    "critical_reader_rate_at": "turning",
    "critical_tilt": "turning",
    "decayed_mode_excess_loss": "decayed_noise",
    "deep_balanced_layers": "deep",
    "deep_balanced_time": "deep",
    "deep_conserved": "deep",
    "deep_critical_decay": "deep",
    "deep_mode": "deep",
    "deep_rest_points": "deep",
    "deep_slowdown": "deep",
    "deep_time": "deep",
    "end_point": "fixed_points",
    "end_point_excess_loss": "decayed_noise",
    "exact_map": "exact",
    "excess_loss": "noise",
    "expected_learned_fraction": "random_learning",
    "expected_loss": "random_learning",
    "feedback_alignment_end_point": "fixed_points",
    "feedback_alignment_mode": "feedback_alignment",
    "growing_part": "unbalanced",
    "half_learned_fraction": "random_learning",
    "inverse_overlap_tail": "random_channels",
    "largest_step": "noise",
    "lazy_outputs": "wide",
    "learned_modes": "fixed_points",
    "local_escape_time": "local",
    "local_time": "local",
    "m_balanced_weights": "balance",
    "mirror_error": "balance",
    "mode_excess_loss": "noise",
    "mode_strength": "modes",
    "modes_learned_by_errors": "turning",
    "multiplexed_times": "multiplexing",
    "noise_balance": "noise",
    "normative_turn_time": "normative",
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
    "small_start_map": "unbalanced",
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
