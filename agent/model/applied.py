"""What became of a quota on a node: the noun that enforcement answers with and all later stages read."""

from __future__ import annotations

import msgspec

from autoscaler.contract.keys import EFFECTIVE_NOW, Effect
from autoscaler.contract.quota import Observed


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What became of one quota on one device; a reason means that it is not in force as asked, with the numbers."""

    effect: Effect
    observed: Observed
    reason: str = ""

    @property
    def in_force(self) -> bool:
        """Whether the running worker is held to what was asked."""
        return not self.reason and self.effect in EFFECTIVE_NOW
