"""The node's view of the GPU table: a file of the same form overrides it row by row, an unknown model is said once.

The table itself is the contract's: the controller reads it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import structlog

from autoscaler.contract import gpus
from autoscaler.contract.gpus import COLUMNS, Gpu, read_rows

__all__ = ["COLUMNS", "Gpu", "GpuTable", "load_gpu_table", "read_rows"]

_log = structlog.get_logger(__name__)


class GpuTable(gpus.GpuTable):
    """The contract's table, which also warns about a model that it does not know."""

    def __init__(self, rows: Iterable[Gpu]) -> None:
        """Index the rows.

        Raises:
            ValueError: a pattern is no regular expression.
        """
        super().__init__(rows)
        self._warned: set[str] = set()

    def lookup(self, model: str) -> Gpu | None:
        """Return the row whose pattern matches the whole name, else the one with that alias; any case.

        An unknown model is None and is warned about once.
        """
        row = super().lookup(model)
        if row is None and model not in self._warned:
            self._warned.add(model)
            _log.warning("gpu_model_unknown", model=model, effect="its TFLOPs series are absent")
        return row


def load_gpu_table(override: Path | None = None) -> GpuTable:
    """Return the built-in table, with the rows of `override` (same columns) before it.

    Raises:
        ValueError: a row is wrong; names file, line and what is allowed.
        OSError: the override cannot be read.
    """
    rows = gpus.built_in_rows()
    if override is not None:
        rows = read_rows(override.read_text(encoding="utf-8"), str(override)) + rows
    return GpuTable(rows)
