"""The columns of `kubectl get tfw` and `kubectl get wp`, for folders of manifests and the demo.

Column names and order are those of the CRDs (`model.crd`); a test holds the two against each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, Final

from rich.console import Console
from rich.table import Table

from autoscaler.model.quantity import format_duration
from autoscaler.model.workload import Manifest

UNBOUNDED: Final = 1000
_DISPLAY: Final = ("status", "autoscaling", "display")
_SUMMARY: Final = ("status", "summary")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title and where its text stands in the object; an empty path is computed (name, age)."""

    title: str
    path: tuple[str, ...] = ()


WORKLOAD_COLUMNS: Final = (
    Column("Name"),
    Column("QoS", (*_DISPLAY, "qos")),
    Column("Auto", (*_DISPLAY, "auto")),
    Column("TFlops", (*_DISPLAY, "tflops")),
    Column("VRAM", (*_DISPLAY, "vram")),
    Column("Replicas", (*_DISPLAY, "replicas")),
    Column("Applied", ("status", "autoscaling", "applied")),
    Column("Status", (*_DISPLAY, "status")),
    Column("Age"),
)
PROFILE_COLUMNS: Final = (
    Column("Name"),
    Column("QoS", ("spec", "qos")),
    Column("Auto", (*_SUMMARY, "auto")),
    Column("TFlops", (*_SUMMARY, "display", "tflops")),
    Column("VRAM", (*_SUMMARY, "display", "vram")),
    Column("Replicas", (*_SUMMARY, "display", "replicas")),
    Column("Workloads", ("status", "workloads")),
    Column("Ready"),
    Column("Age"),
)
COLUMNS: Final = {"TensorFusionWorkload": WORKLOAD_COLUMNS, "WorkloadProfile": PROFILE_COLUMNS}
"""By kind."""

Row = dict[str, str]


def rows(objects: Iterable[Manifest], kind: str, now: float) -> list[Row]:
    """Return one row per object of a kind, by namespace and name; what an object does not say is an empty cell."""
    chosen = sorted((one for one in objects if one.get("kind") == kind), key=_name)
    return [{column.title: _cell(one, column, now) for column in COLUMNS[kind]} for one in chosen]


def table(found: Sequence[Row], kind: str, out: IO[str]) -> None:
    """Print rows as a table: with style and within its width on a terminal, else as plain lines, whole."""
    console = Console(file=out, width=None if out.isatty() else UNBOUNDED, highlight=False, soft_wrap=False)
    console.print(rendered(found, kind))


def rendered(found: Sequence[Row], kind: str) -> Table:
    """Return rows as a rich table, for one print or for a live display."""
    made = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for column in COLUMNS[kind]:
        made.add_column(column.title.upper(), no_wrap=True, overflow="ellipsis")
    for row in found:
        made.add_row(*(row[column.title] for column in COLUMNS[kind]))
    return made


def as_json(found: Sequence[Row]) -> str:
    """Return rows as a JSON list of objects, keyed by column."""
    return json.dumps(list(found), ensure_ascii=False, indent=2)


def _name(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest.get("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")


def _cell(manifest: Manifest, column: Column, now: float) -> str:
    match column.title:
        case "Name":
            return _name(manifest)[1]
        case "Age":
            return _age(manifest, now)
        case "Ready":
            return _ready(manifest)
        case _:
            return _text(manifest, column.path)


def _text(manifest: Manifest, path: tuple[str, ...]) -> str:
    value: Any = manifest
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def _ready(manifest: Manifest) -> str:
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    return next((str(one.get("status")) for one in conditions if one.get("type") == "ConfigValid"), "")


def _age(manifest: Manifest, now: float) -> str:
    """Return how old an object is, in the two largest units, as kubectl does."""
    born = (manifest.get("metadata") or {}).get("creationTimestamp")
    if not born:
        return ""
    try:
        seconds = max(0, int(now - datetime.fromisoformat(str(born)).timestamp()))
    except ValueError:
        return ""
    for unit in (86_400, 3600, 60):
        if seconds >= 10 * unit:
            return format_duration(seconds // unit * unit)
    return format_duration(seconds if seconds < 3600 else seconds // 60 * 60)
