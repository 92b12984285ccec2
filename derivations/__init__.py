"""The results of the linear theory, derived and verified with SymPy, each as one function that returns a derivation.

``python -m derivations`` verifies them all. The package is typed independently of ``linfb.theory``, with which
the tests compare it.
"""

# isort: off
# The order of these imports is the order of the pages.
from derivations import (  # noqa: F401
    alignment,
    channel,
    trajectory,
    trajectory_small,
    riccati,
    regression,
    single_mode,
    mode_times,
    end_point,
    threshold,
    vanishing_decay,
    overlap_law,
    overlap_spectrum,
    overlap_finite,
    phase_diagram,
    unbalanced,
    small_starts,
    carried_alignment,
    feedback_alignment,
    feedback_alignment_matrix,
    oja,
    local_rule,
    turning,
    capture,
    adaptive,
    deep,
    deep_modes,
    noise,
    decayed_noise,
    wide,
)

# isort: on
from derivations.core import ClosedForm, Derivation, Rewriting, Step
from derivations.registry import REGISTRY, derive, derive_all
from derivations.verification import Failure, failures, verify

__all__ = [
    "REGISTRY",
    "ClosedForm",
    "Derivation",
    "Failure",
    "Rewriting",
    "Step",
    "derive",
    "derive_all",
    "failures",
    "verify",
]
