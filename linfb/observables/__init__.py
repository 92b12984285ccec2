"""What one measures on linear networks, as pure functions of a snapshot; :func:`linfb.simulate` calls them by name.

A user's own observable is any function of a :class:`Snapshot` that returns an array with a leading run axis. Numbers
for receptive fields, of networks of any kind, are functions of arrays.
"""

from linfb.observables.linear import NAMED, Snapshot
from linfb.observables.measures import cosine, invariant, participation_ratio, row_projector
from linfb.observables.receptive_fields import (
    CentreSurround,
    Orientedness,
    bar_responses,
    centre_surround,
    orientedness,
    random_fields,
    smoothness,
)

__all__ = [
    "NAMED", "CentreSurround", "Orientedness", "Snapshot", "bar_responses", "centre_surround", "cosine", "invariant",
    "orientedness", "participation_ratio", "random_fields", "row_projector", "smoothness",
]  # fmt: skip
