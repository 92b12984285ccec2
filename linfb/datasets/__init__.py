"""Real data: labelled images from verified files and text, split and standardised; augmentation of images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linfb.datasets.augmentation import Cutout, RandomCrop, RandomFlip, RandomRotation, augmented
    from linfb.datasets.autoaugment import AutoAugment
    from linfb.datasets.dataset import Dataset
    from linfb.datasets.load import DATASET_NAMES, load_dataset
    from linfb.datasets.splits import Samples, Splits
    from linfb.datasets.text import Text, demo_text, load_text

_HOME = {
    **dict.fromkeys(("Cutout", "RandomCrop", "RandomFlip", "RandomRotation", "augmented"), "augmentation"),
    "AutoAugment": "autoaugment",
    **dict.fromkeys(("DATASET_NAMES", "load_dataset"), "load"),
    "Dataset": "dataset",
    **dict.fromkeys(("Samples", "Splits"), "splits"),
    **dict.fromkeys(("Text", "demo_text", "load_text"), "text"),
}

__all__ = [
    "DATASET_NAMES",
    "AutoAugment",
    "Cutout",
    "Dataset",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "Samples",
    "Splits",
    "Text",
    "augmented",
    "demo_text",
    "load_dataset",
    "load_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
