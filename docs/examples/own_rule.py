"""A learning rule of one's own: feedback alignment through a sparse kernel (few synapses carry the error back)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from linfb.rules import Channel, Rule, mirrors, readers
from linfb.rules.base import Mirror


@dataclass(frozen=True)
class Sparse(Mirror):
    """A fixed random kernel of which only a share of the entries is not zero; its norm does not depend on the share."""

    share: float = 0.1
    name: ClassVar[str] = "sparse"

    def initial(self, layer, P, weights, shape, rng):
        """Draw the kernel: called once for each layer, with a random stream of its own."""
        kept = rng.random(shape) < self.share
        return Channel(P=P, Q=mirrors.draw("random", None, shape, rng) * kept / np.sqrt(self.share))

    # What a mirror does not say is taken from Mirror: errors are carried through Q, and Q does not learn.


def sparse_feedback(share=0.1):
    """Return the rule: where errors come from, how they are read, how they are carried back."""
    return Rule("sparse feedback", "above", readers.Identity(), Sparse(share))
