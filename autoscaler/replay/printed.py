"""A backtest as text and as data: the same figures, totals first, then every workload."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from autoscaler.model.quantity import format_duration
from autoscaler.replay.backtest import Backtest, Outcome, Result
from autoscaler.replay.contend import CURRENT, DEFAULTS, STATIC, TODAY
from autoscaler.replay.measure import Measures, as_data, saved_share

NAMES: Final = {
    STATIC: "what is set, held all the time",
    TODAY: "what the pods carry today, held all the time",
    CURRENT: "the current profile",
    DEFAULTS: "the defaults of the service level that the agents report, else of medium",
}
Cell = Callable[[Measures, Measures | None], str]
"""The text of a column: of a contender, beside what it is compared with; static itself is compared with nothing."""


def number(value: float) -> str:
    """Return an amount to three digits: `12,345`, `123`, `12.3`, `0.12`; a dash where there is none."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.1g}"


def percent(share: float) -> str:
    """Return a share in percent; a dash where there is none."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


COLUMNS: Final[Mapping[str, Cell]] = {
    "TFLOP·h": lambda one, _: number(one.compute.request),
    "saved": lambda one, static: _saved(static.compute.request if static else None, one.compute.request),
    "slack": lambda one, _: percent(one.compute.slack_share),
    "under": lambda one, _: percent(one.compute.under_share),
    "throttled": lambda one, _: percent(one.compute.throttled_share),
    "GiB·h": lambda one, _: number(one.vram.request or math.nan),
    "saved ": lambda one, static: _saved(static.vram.request if static else None, one.vram.request),
    "slack ": lambda one, _: percent(one.vram.slack_share if one.vram.request else math.nan),
    "OOM/1000h": lambda one, _: number(one.ooms_per_1000_hours),
    "chg/day": lambda one, _: number(one.changes_per_day),
    "GPUs": lambda one, _: f"{one.gpus:.2f}",
}


def _saved(base: float | None, now: float) -> str:
    return "" if base is None else percent(saved_share(base, now))


def print_backtest(console: Console, made: Backtest) -> None:
    """Print totals, every workload, and what a reader must know to judge them."""
    for line in heading(made):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print()
    totals = _table("ALL WORKLOADS")
    for name in made.names:
        totals.add_row(name, *_cells(made.total(name), made.static if name != STATIC else None))
    console.print(totals)
    console.print()
    each = _table("WORKLOAD", "POLICY")
    for result in made.results:
        static = result.outcomes[0].measures
        for place, one in enumerate(result.outcomes):
            cells = _cells(one.measures, static if place else None)
            each.add_row("" if place else result.name, one.name, *cells)
    console.print(each)
    console.print()
    for line in legend(made):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(*titles: str) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in titles:
        made.add_column(title, overflow="ellipsis", no_wrap=True, max_width=22)
    for title in COLUMNS:
        made.add_column(title.strip(), justify="right", no_wrap=True)
    return made


def _cells(one: Measures, static: Measures | None) -> Iterator[str]:
    return (cell(one, static) for cell in COLUMNS.values())


def heading(made: Backtest) -> Iterator[str]:
    """Yield what was replayed, and what came of it, one sentence a contender."""
    length = format_duration(round(made.span.end - made.span.start))
    count = len(made.results)
    yield f"{count} workload{'s' if count != 1 else ''} over {length} from {made.source}"
    for name in made.tried:
        yield f"{name}: {conclusion(made, name)}"


def conclusion(made: Backtest, name: str) -> str:
    """Return what a contender would have reserved and broken, in one sentence."""
    one, static = made.total(name), made.static
    reserved = [
        f"{_less(saved_share(before.request, after.request))} {noun}"
        for noun, before, after in (("compute", static.compute, one.compute), ("VRAM", static.vram, one.vram))
        if before.request > 0
    ]
    return (
        f"{' and '.join(reserved)} reserved than with what is set, "
        f"{percent(one.compute.throttled_share)} of the compute demand throttled (set: "
        f"{percent(static.compute.throttled_share)}), {one.ooms} out-of-memory kill{'' if one.ooms == 1 else 's'} in "
        f"{number(one.hours)} hours "
        f"(set: {static.ooms}), {number(one.changes_per_day)} changes per workload and day"
    )


def _less(share: float) -> str:
    return f"{100 * abs(share):.0f} % {'less' if share >= 0 else 'more'}"


def legend(made: Backtest) -> Iterator[str]:
    """Yield what the columns mean here, and every note on the input."""
    models = sorted({result.card.model for result in made.results})
    yield "; ".join([*(f"{name}: {NAMES[name]}" for name in made.names if name in NAMES)])
    yield (
        "TFLOP·h, GiB·h: requests times hours; slack: of these, never used; under: time with more demand than the "
        "request; throttled: demand above the limit"
    )
    yield (
        f"GPUs: requests as shares of one {' or '.join(models)}, packing aside; chg/day: changes of a request per "
        "workload and day; counted after the warm-up"
    )
    if made.censored_hours:
        yield (
            f"{number(made.censored_hours)} workload-hours were clipped when they were recorded: the demand then is "
            "an estimate from below (1.15 times the use, 1.2 times the limit of a VRAM kill)"
        )
    yield from (f"note: {note}" for note in made.notes)


def backtest_as_data(made: Backtest) -> dict[str, Any]:
    """Return everything as JSON types; equal runs give equal data."""
    return {
        "source": made.source,
        "start_seconds": made.span.start,
        "end_seconds": made.span.end,
        "censored_hours": made.censored_hours,
        "notes": list(made.notes),
        "total": [{"policy": name, **_figures(made.total(name), made.static)} for name in made.names],
        "workloads": [_result(result) for result in made.results],
    }


def _result(result: Result) -> dict[str, Any]:
    static = result.outcomes[0].measures
    return {
        "namespace": result.key.namespace,
        "name": result.key.name,
        "step_seconds": result.step,
        "recorded_hours": result.hours,
        "censored_hours": result.censored_hours,
        "gpu_model": result.card.model,
        "policies": [_outcome(one, static) for one in result.outcomes],
    }


def _outcome(one: Outcome, static: Measures) -> dict[str, Any]:
    names = ("tflops_request", "tflops_limit", "vram_request_bytes", "vram_limit_bytes")
    return {
        "policy": one.name,
        "began_with": dict(zip(names, one.began_with, strict=True)),
        **_figures(one.measures, static),
    }


def _figures(one: Measures, static: Measures) -> dict[str, Any]:
    saved = {
        "compute_saved_tflop_hours": static.compute.request - one.compute.request,
        "compute_saved_ratio": saved_share(static.compute.request, one.compute.request),
        "vram_saved_gib_hours": static.vram.request - one.vram.request,
        "vram_saved_ratio": saved_share(static.vram.request, one.vram.request),
        "gpu_equivalents_saved": static.gpus - one.gpus,
    }
    return {name: _plain(value) for name, value in {**as_data(one), **saved}.items()}


def _plain(value: float) -> float | int | None:
    """Return a figure without what binary fractions add to it, None where there is none."""
    if isinstance(value, int):
        return value
    return round(value, 6) + 0.0 if math.isfinite(value) else None
