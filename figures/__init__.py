"""Figures: each module simulates, then plots; `python -m figures` runs them with a cache and keeps a record.

A figure is a module of this package with a docstring (question, theory, what is seen) and

``CONFIGS``
    a frozen dataclass of settings per preset, ``{"quick": Config(...), "paper": Config(...)}``;
``PARTS``
    the name of a tuple-valued field of the configuration: each of its entries is simulated, cached and, with more than
    one process, distributed on its own; but those that differ in rank alone ("Oja r=1", "Oja r=2") stay together;
``simulate(config, resources) -> xarray.Dataset``
    with a dimension called after that field's singular, along which parts are joined;
``checks(results, config) -> dict``
    how far theory and simulation are apart, and how far a wrong theory is, as numbers for the provenance file;
``plot(results, config) -> matplotlib.figure.Figure``
    reads the data set and computes nothing that takes time; above it is written which preset made it;
``PAPER`` and ``paper_of(cell)`` (where there are any)
    the paper's numbers, as JSON can hold them, which go into the provenance; and the test accuracy of a cell on
    CIFAR-10, which the docs set beside what is recorded.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

NAMES = (
    "modes", "rank", "threshold", "learning_times", "phase_diagram", "unbalanced", "small_starts", "regimes",
    "capture", "hiding", "deep", "noise", "mlp", "constrained", "classes", "networks", "blocks", "transformer",
    "compute", "cost", "readers", "update_rank", "alignment", "carried", "receptive_fields", "language", "wide",
    "committee",
)  # fmt: skip
"""All figures, in the order in which they are made."""
PRESETS = ("quick", "cpu", "paper")
"""Minutes, hours, a GPU; not every figure has all of them."""


def load(name: str) -> Any:
    """Return the module of a figure, or raise a ValueError that lists the figures there are."""
    from linfb._checks import choice

    return import_module(f"figures.{choice('figure', name, NAMES)}")
