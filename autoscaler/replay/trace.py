"""Demand from a trace file, CSV or Parquet: one row per workload and moment.

Columns: `workload_id` (NAME or NAMESPACE/NAME), `timestamp_s` (seconds), `tflops_used` (mean of one worker from then
to the next row), and optionally `vram_bytes_used` (peak). Others are ignored. An empty cell or `nan` is unknown.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from autoscaler.errors import ConfigError, Problem
from autoscaler.model.usage import Floats
from autoscaler.replay.demand import Demand, Demands, key_of, steady

ID, TIME, COMPUTE, VRAM = "workload_id", "timestamp_s", "tflops_used", "vram_bytes_used"
COLUMNS: Final = (ID, TIME, COMPUTE)
EXTRA: Final = "pip install 'tensor-fusion-autoscaler[parquet]'"
JITTER_RATIO: Final = 0.1
"""Moments this near to a regular grid, as a share of its step, are on it."""
LEAST_STEP_SECONDS: Final = 60.0
"""Irregular samples become bins at least this wide: what the product learns in."""
MOST_STEPS: Final = 2_000_000
"""More steps than this for one workload is a wrong timestamp, not a long trace."""

Columns = tuple[list[str], Floats, Floats, Floats]


def read_trace(path: Path) -> Demands:
    """Return the demand of every workload in a file, in the order in which they first appear.

    Raises:
        ConfigError: the file can't be read, a column is missing, or a value can't be a measurement.

    """
    try:
        ids, *figures = _FORMATS.get(path.suffix.lower(), _unknown)(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([Problem("--trace", str(path), f"a readable file ({error})")]) from error
    if not ids:
        raise ConfigError([Problem("--trace", str(path), "a file with at least one row")])
    _check(path, ids, figures)
    codes = {name: code for code, name in enumerate(dict.fromkeys(ids))}
    order = np.array([codes[name] for name in ids])
    demands, notes = [], []
    for name, code in codes.items():
        demand, note = _demand(path, name, tuple(column[order == code] for column in figures))
        demands.append(demand)
        notes += [note] if note else []
    return Demands(tuple(demands), str(path), tuple(notes))


def _csv(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        _require(path, rows.fieldnames or ())
        has_vram = VRAM in (rows.fieldnames or ())
        ids: list[str] = []
        figures: list[tuple[float, float, float]] = []
        for row in rows:
            where = f"{path}:{rows.line_num}"
            ids.append((row[ID] or "").strip())
            vram = _number(where, VRAM, row[VRAM]) if has_vram else float("nan")
            figures.append((_number(where, TIME, row[TIME]), _number(where, COMPUTE, row[COMPUTE]), vram))
    time, compute, vram_used = np.array(figures, dtype=float).reshape(-1, 3).T
    return ids, time, compute, vram_used


def _parquet(path: Path) -> Columns:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        base: Any = importlib.import_module("pyarrow")
    except ImportError as error:
        allowed = f"a CSV file, or Parquet after {EXTRA} ({error})"
        raise ConfigError([Problem("--trace", str(path), allowed)]) from error
    try:
        names = parquet.read_schema(path).names
        _require(path, names)
        found = [column for column in (*COLUMNS, VRAM) if column in names]
        table = parquet.read_table(path, columns=found)
        figures = {
            column: np.asarray(table[column].cast(base.float64()).to_numpy(), dtype=float) for column in found[1:]
        }
        ids = [str(name) for name in table[ID].to_pylist()]
    except base.ArrowException as error:
        message = str(error).splitlines()[0]
        raise ConfigError([Problem("--trace", str(path), f"a Parquet file with numbers ({message})")]) from error
    return ids, figures[TIME], figures[COMPUTE], figures.get(VRAM, np.full(len(ids), np.nan))


def _unknown(path: Path) -> Columns:
    raise ConfigError([Problem("--trace", str(path), f"a file that ends in {' or '.join(_FORMATS)}")])


_FORMATS: Final[Mapping[str, Callable[[Path], Columns]]] = {".csv": _csv, ".parquet": _parquet}


def _require(path: Path, found: Any) -> None:
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        allowed = f"the columns {', '.join(COLUMNS)} and optionally {VRAM}; {', '.join(missing)} missing"
        raise ConfigError([Problem("columns", ", ".join(found), allowed, str(path))])


def _number(where: str, column: str, text: str | None) -> float:
    if text is None or not text.strip():
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise ConfigError([Problem(column, text, "a number, or an empty cell where unknown", where)]) from None


def _check(path: Path, ids: list[str], figures: list[Floats]) -> None:
    """Raise for a row that can't be a measurement, naming the first one."""
    if "" in ids:
        raise ConfigError([Problem(ID, "", "the name of a workload in every row", f"{path}: row {ids.index('') + 1}")])
    time, compute, vram = figures
    rules = (
        (TIME, ~np.isfinite(time), time, "seconds, in every row"),
        (COMPUTE, (compute < 0) | np.isinf(compute), compute, "TFLOPs, 0 or more, or empty where unknown"),
        (VRAM, (vram < 0) | np.isinf(vram), vram, "bytes, 0 or more, or empty where unknown"),
    )
    problems = []
    for column, wrong, values, allowed in rules:
        if wrong.any():
            row = int(np.argmax(wrong))
            problems.append(Problem(column, f"{values[row]:g}", allowed, f"{path}: row {row + 1} ({ids[row]})"))
    if problems:
        raise ConfigError(problems)


def _demand(path: Path, name: str, figures: tuple[Floats, ...]) -> tuple[Demand, str]:
    """Return one workload's demand on a regular grid, and a sentence where it was put there."""
    order = np.argsort(figures[0], kind="stable")
    time, compute, vram = (column[order] for column in figures)
    problem = next(_unusable(name, time), None)
    if problem is not None:
        raise ConfigError([problem_in(path, problem)])
    gaps = np.diff(time)
    step = float(np.median(gaps))
    places = (time - time[0]) / step
    note = ""
    if np.abs(places - np.round(places)).max() > JITTER_RATIO or np.unique(np.round(places)).size < places.size:
        step = max(step, LEAST_STEP_SECONDS)
        places = np.floor((time - time[0]) / step)
        note = f"{name}: irregular timestamps, put into bins of {step:g} s (mean compute, peak VRAM)"
    bins = np.round(places).astype(np.int64)
    if bins[-1] >= MOST_STEPS:
        allowed = f"at most {MOST_STEPS:,} steps of {step:g} s; are all of them seconds?"
        raise ConfigError([problem_in(path, Problem(TIME, f"{time[0]:g} to {time[-1]:g}", allowed, name))])
    return steady(key_of(name), float(time[0]), step, *_binned(bins, compute, vram)), note


def _unusable(name: str, time: Floats) -> Iterator[Problem]:
    if len(time) < 2:
        yield Problem(TIME, "1 row", "at least two rows for a workload", name)
        return
    twice = np.flatnonzero(np.diff(time) == 0)
    if twice.size:
        yield Problem(TIME, f"{time[twice[0]]:g} stands twice", "one row for a workload and moment", name)


def problem_in(path: Path, problem: Problem) -> Problem:
    """Return the problem with its file before the place."""
    return Problem(problem.path, problem.value, problem.allowed, f"{path}: {problem.source}")


def _binned(
    bins: np.ndarray[tuple[int, ...], np.dtype[np.int64]], compute: Floats, vram: Floats
) -> tuple[Floats, Floats]:
    """Return mean compute and peak VRAM of each bin, NaN where nothing is known."""
    count = int(bins[-1]) + 1
    known = ~np.isnan(compute)
    seen = np.bincount(bins[known], minlength=count)
    sums = np.bincount(bins[known], weights=compute[known], minlength=count)
    peaks = np.full(count, np.nan)
    np.fmax.at(peaks, bins, vram)
    return np.where(seen > 0, sums / np.maximum(seen, 1), np.nan), peaks
