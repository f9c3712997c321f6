"""The GPU table: dense FP16 TFLOPs by NVML model name or alias, each row with its source; read by both programs.

The built-in rows are `gpus.csv` beside this module, data of the package like its code.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

COLUMNS: Final = ("name_pattern", "aliases", "fp16_dense_tflops", "vram_gb", "source")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One row: dense FP16 tensor TFLOPs with FP32 accumulation (no sparsity), and the sizes of VRAM it is sold with."""

    name_pattern: str
    aliases: tuple[str, ...]
    tflops: float
    vram_gb: tuple[int, ...]
    source: str


class GpuTable:
    """Looks models up; rows that come first win, so that an override stands before the built-in rows."""

    def __init__(self, rows: Iterable[Gpu]) -> None:
        """Index the rows.

        Raises:
            ValueError: a pattern is no regular expression.
        """
        self._patterns: list[tuple[re.Pattern[str], Gpu]] = []
        self._aliases: dict[str, tuple[str, Gpu]] = {}
        for row in rows:
            try:
                self._patterns.append((re.compile(row.name_pattern, re.IGNORECASE), row))
            except re.error as error:
                raise ValueError(f"GPU table: pattern {row.name_pattern!r}: {error}") from error
            for alias in row.aliases:
                self._aliases.setdefault(alias.casefold(), (alias, row))
        self._found: dict[str, Gpu | None] = {}

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every short name that finds a row, in the order of the rows."""
        return tuple(alias for alias, _ in self._aliases.values())

    def lookup(self, model: str) -> Gpu | None:
        """Return the row whose pattern matches the whole name, else that with the alias, in any case; None: unknown."""
        if model not in self._found:
            self._found[model] = self._search(model.strip())
        return self._found[model]

    def sizes_gb(self, model: str) -> tuple[int, ...]:
        """Return the sizes of VRAM that a model is sold with, rising; a short name may mean several boards."""
        name = model.strip()
        rows = [row for pattern, row in self._patterns if pattern.fullmatch(name)]
        rows = rows or [row for _, row in self._patterns if name.casefold() in map(str.casefold, row.aliases)]
        return tuple(sorted({size for row in rows for size in row.vram_gb}))

    def _search(self, model: str) -> Gpu | None:
        for pattern, row in self._patterns:
            if pattern.fullmatch(model):
                return row
        return self._aliases.get(model.casefold(), ("", None))[1]


def built_in_rows() -> tuple[Gpu, ...]:
    """Return the rows that the package brings."""
    return read_rows(files("autoscaler.contract").joinpath("gpus.csv").read_text(encoding="utf-8"), "gpus.csv")


def read_rows(text: str, source: str) -> tuple[Gpu, ...]:
    """Return the rows of a table in CSV form; `source` names it in errors.

    Raises:
        ValueError: a column is missing or a figure is not a positive number.
    """
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{source}: columns {', '.join(missing)} are missing; allowed: {','.join(COLUMNS)}")
    return tuple(_row(record, f"{source}:{reader.line_num}") for record in reader)


def _row(record: dict[str, str | None], where: str) -> Gpu:
    cells = {column: (record.get(column) or "").strip() for column in COLUMNS}
    try:
        tflops = float(cells["fp16_dense_tflops"])
        vram_gb = tuple(int(size) for size in cells["vram_gb"].split("|"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; allowed: TFLOPs such as 121, VRAM such as 24 or 40|80") from error
    if not (cells["name_pattern"] and cells["source"] and 0 < tflops < float("inf")):
        raise ValueError(f"{where}: a row needs a name pattern, a source and TFLOPs above 0; found {cells}")
    aliases = tuple(alias.strip() for alias in cells["aliases"].split("|") if alias.strip())
    return Gpu(cells["name_pattern"], aliases, tflops, vram_gb, cells["source"])
