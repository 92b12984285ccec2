"""Cached simulations: a store of results under keys that say what a simulation depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from figures._source import library_hash, source_of

LAYOUT = 2  # of the stored files; a change makes old ones unreadable


def key_of(name: str, config: Any, device: str) -> str:
    """Return the key of one simulation: figure, settings, device, the code that simulates, and the whole library."""
    content = {
        "layout": LAYOUT,
        "figure": name,
        "config": asdict(config),
        "device": device,
        "simulate": source_of(name, ["simulate"]),
        "linfb": library_hash(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
