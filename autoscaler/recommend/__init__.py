"""Snapshot to wanted figures: pure, vectorised over the fleet.

`learn` and `watch` take usage into the memory, `recommend` reads it. Order inside a recommendation: the request first,
the limit over it, replicas only where limits can't grow.
"""

from autoscaler.recommend.engine import recommend
from autoscaler.recommend.learn import learn
from autoscaler.recommend.memory import UNTIL, new_memory
from autoscaler.recommend.watch import watch

__all__ = ["UNTIL", "learn", "new_memory", "recommend", "watch"]
