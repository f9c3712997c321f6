"""GPU models by the table that both programs share: one name for a model, whatever it is called; pure.

The table is data of the package, read once.
"""

from __future__ import annotations

from functools import cache, lru_cache

from autoscaler.contract.gpus import Gpu, GpuTable, built_in_rows


@cache
def _table() -> GpuTable:
    return GpuTable(built_in_rows())


def known_model(model: str) -> Gpu | None:
    """Return the row of a model by NVML's name or a short one, in any case; None for one that is not in the table."""
    return _table().lookup(model) if model.strip() else None


@lru_cache(maxsize=4096)
def canonical(model: str) -> str:
    """Return the name by which two spellings of one model are equal; of a model that nobody knows, the text itself."""
    row = known_model(model)
    return row.name_pattern if row is not None else " ".join(model.split()).casefold()
