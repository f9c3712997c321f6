"""Wanted to allowed: ordered, pure guards; each may hold, cap or floor, and says why."""

from autoscaler.guard.case import Limits
from autoscaler.guard.chain import GUARDS, at_rest, guard, note
from autoscaler.guard.memory import new_memory

__all__ = ["GUARDS", "Limits", "at_rest", "guard", "new_memory", "note"]
