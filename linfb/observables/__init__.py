"""What one measures on linear networks, as pure functions of a snapshot; :func:`linfb.simulate` calls them by name.

A user's own observable is any function of a :class:`Snapshot` that returns an array with a leading run axis.
"""

from linfb.observables.linear import NAMED, Snapshot
from linfb.observables.measures import cosine, invariant, participation_ratio, row_projector

__all__ = ["NAMED", "Snapshot", "cosine", "invariant", "participation_ratio", "row_projector"]
