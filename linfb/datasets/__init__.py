"""Real data: labelled images from verified files, split and standardised."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linfb.datasets.dataset import Dataset
    from linfb.datasets.load import DATASET_NAMES, load_dataset
    from linfb.datasets.splits import Samples, Splits

__all__ = ["DATASET_NAMES", "Dataset", "Samples", "Splits", "load_dataset"]

_HOME = {"DATASET_NAMES": "load", "Dataset": "dataset", "Samples": "splits", "Splits": "splits", "load_dataset": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
