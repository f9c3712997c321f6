"""Advice for people and programs: a table, or records in JSON, YAML and CSV with columns that stay."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Any, Final

import yaml
from rich.console import Console
from rich.table import Table

from autoscaler.advise.advice import Advice, Severity, Totals, totals_of
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.quantity import format_duration
from autoscaler.model.resources import SPECS, Resource
from autoscaler.report.display import arrow, short_amount

NAMES: Final = {
    Field.COMPUTE_REQUEST: "tflops_request",
    Field.COMPUTE_LIMIT: "tflops_limit",
    Field.VRAM_REQUEST: "vram_request_bytes",
    Field.VRAM_LIMIT: "vram_limit_bytes",
    Field.REPLICAS: "replicas",
}
"""How records name each figure; `current_` stands before what holds, `recommended_` before what should."""
COLUMNS: Final = (
    *("namespace", "workload", "qos", "gpu_model", "gpu_count", "workers", "severity"),
    *(f"{prefix}_{name}" for name in NAMES.values() for prefix in ("current", "recommended")),
    *("saved_tflops", "saved_vram_bytes", "samples", "span_seconds", "out_of_memory_events", "reason"),
)
"""What a record holds, in this order; new ones are added at the end."""
UNBOUNDED: Final = 1000
_STYLES: Final = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.SAVING: "green"}
_NONE: Final = "-"


def as_record(row: Advice) -> dict[str, Any]:
    """Return a row as flat data, keyed by COLUMNS; None is not known, or not said."""
    config = row.config
    record: dict[str, Any] = {
        "namespace": row.key.namespace,
        "workload": row.key.name,
        "qos": None if config is None else config.qos.value,
        "gpu_model": None if config is None else config.gpu_model or None,
        "gpu_count": None if config is None else config.gpu_count,
        "workers": row.workers,
        "severity": row.severity.value,
        "saved_tflops": _number(Resource.COMPUTE, row.saved[Resource.COMPUTE]),
        "saved_vram_bytes": _number(Resource.VRAM, row.saved[Resource.VRAM]),
        "samples": row.samples,
        "span_seconds": int(row.span_seconds),
        "out_of_memory_events": row.ooms,
        "reason": row.reason,
    }
    for field, name in NAMES.items():
        record[f"current_{name}"] = _number(field.resource, row.current[field])
        record[f"recommended_{name}"] = _number(field.resource, row.recommended[field])
    return {column: record[column] for column in COLUMNS}


def as_data(rows: Sequence[Advice], at: float, history_seconds: float) -> dict[str, Any]:
    """Return everything as plain data: when, over which history, the records and the totals."""
    totals = totals_of(rows)
    figures: dict[str, Any] = {"workloads": totals.workloads, "judged": totals.judged}
    for resource, unit in ((Resource.COMPUTE, "tflops_request"), (Resource.VRAM, "vram_request_bytes")):
        figures[f"current_{unit}"] = _number(resource, totals.current[resource])
        figures[f"recommended_{unit}"] = _number(resource, totals.recommended[resource])
    figures["by_severity"] = {severity.value: count for severity, count in totals.by_severity.items()}
    return {
        "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        "history": format_duration(history_seconds),
        "workloads": [as_record(row) for row in rows],
        "totals": figures,
    }


def as_json(data: dict[str, Any]) -> str:
    """Return the data of `as_data` as JSON."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def as_yaml(data: dict[str, Any]) -> str:
    """Return the data of `as_data` as YAML."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def as_csv(rows: Sequence[Advice]) -> str:
    """Return the records as CSV under a line of their columns; what is not known is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(as_record, rows))
    return out.getvalue()


def print_table(rows: Sequence[Advice], history_seconds: float, out: IO[str]) -> None:
    """Print the rows and the totals: within its width and with colours on a terminal, else as whole plain lines."""
    console = Console(file=out, width=None if out.isatty() else UNBOUNDED, highlight=False, soft_wrap=False)
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("workload", "qos", "severity", "tflops", "vram", "replicas", "saved", "samples"):
        made.add_column(title.upper(), no_wrap=True)
    made.add_column("REASON", overflow="fold")
    for row in rows:
        made.add_row(*_cells(row), style=_STYLES.get(row.severity, ""))
    console.print(made)
    console.print(total_line(totals_of(rows), history_seconds), style="bold")


def total_line(totals: Totals, history_seconds: float) -> str:
    """Return what all of it adds up to, in a sentence."""
    parts = []
    for resource, unit in ((Resource.COMPUTE, " TFLOPs"), (Resource.VRAM, " VRAM")):
        before, after = totals.current[resource], totals.recommended[resource]
        share = f" ({(after - before) / before:+.0%})" if before else ""
        parts.append(f"{short_amount(resource, before)}→{short_amount(resource, after)}{unit}{share}")
    counts = [f"{count} {severity.value}" for severity, count in totals.by_severity.items() if count]
    noun = "workload" if totals.workloads == 1 else "workloads"
    return (
        f"{totals.workloads} {noun}, {totals.judged} judged by {format_duration(history_seconds)} of history: "
        f"{', '.join(counts) or 'none'}; requests {', '.join(parts)}"
    )


def _cells(row: Advice) -> tuple[str, ...]:
    return (
        str(row.key),
        _NONE if row.config is None else row.config.qos.value,
        row.severity.value,
        *(_resource_cell(row, resource) for resource in Resource),
        _arrow(_count(row.current[Field.REPLICAS]), _count(row.recommended[Field.REPLICAS])),
        _saved(row),
        str(row.samples),
        row.reason,
    )


def _resource_cell(row: Advice, resource: Resource) -> str:
    fields = [field for field in AMOUNT_FIELDS if field.resource is resource]
    before, after = (
        _pair(resource, [figures[field] for field in fields]) for figures in (row.current, row.recommended)
    )
    return _arrow(before, after)


def _arrow(before: str, after: str) -> str:
    """Return `before→after`; only `before` where nothing is said."""
    return before if after == _NONE else arrow(before, after)


def _pair(resource: Resource, sides: Sequence[float | None]) -> str:
    texts = [_NONE if side is None else short_amount(resource, side) for side in sides]
    return "/".join(dict.fromkeys(texts))


def _count(value: float | None) -> str:
    return _NONE if value is None else f"{value:g}"


def _saved(row: Advice) -> str:
    units = {Resource.COMPUTE: " TFLOPs", Resource.VRAM: ""}
    parts = []
    for resource in Resource:
        saved = row.saved[resource]
        if saved is not None and abs(saved) >= SPECS[resource].floor / 2:
            sign = "" if saved > 0 else "-"
            parts.append(f"{sign}{short_amount(resource, abs(saved))}{units[resource]}")
    return ", ".join(parts) or _NONE


def _number(resource: Resource | None, value: float | None) -> float | int | None:
    if value is None:
        return None
    return round(value, 6) if resource is Resource.COMPUTE else round(value)
