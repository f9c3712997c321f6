"""The command `fit`: a forecast model from traces, such as the one that is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer

from autoscaler.errors import ConfigError, Problem
from autoscaler.model.quantity import parse_duration

if TYPE_CHECKING:
    from autoscaler.fit.rows import Past

HORIZONS: Final = ("30m", "1h", "2h", "4h")
USER_FACTOR: Final = 1.5
"""The user's own request is taken to be this many times the largest use; it only keeps an idle scale off zero."""


def fit(
    trace: Annotated[list[Path], typer.Option(help="Use of workers, CSV or Parquet; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Where the model goes, JSON.")],
    horizon: Annotated[list[str] | None, typer.Option(help="How far ahead, such as 2h; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="What the model calls itself.")] = "fitted",
) -> None:
    """Fit the forecast's model to traces; each series counts the same. Needs the extra `prediction`."""
    from autoscaler.fit.task import fit_all
    from autoscaler.state.models import store_model

    horizons = _seconds(horizon or HORIZONS)
    pasts = [past for path in trace for past in _pasts(path)]
    model = fit_all(pasts, horizons, name)
    try:
        store_model(out, model)
    except OSError as error:
        raise ConfigError([Problem("--out", str(out), f"a file that can be written ({error})")]) from error
    typer.echo(f"{out}: {len(pasts)} series, horizons {', '.join(f'{one:g} s' for one in horizons)}")


def _seconds(horizons: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(parse_duration(one) for one in horizons)
    except ValueError as error:
        raise ConfigError([Problem("--horizon", ", ".join(horizons), str(error))]) from error


def _pasts(path: Path) -> list[Past]:
    """Return each series of a trace; one with nothing in it is left out."""
    from autoscaler.fit.rows import Past, to_bins
    from autoscaler.replay.trace import read_trace

    pasts = []
    for demand in read_trace(path).demands:
        peaks, means = to_bins(demand.compute, demand.step)
        if np.isfinite(peaks).any():
            pasts.append(Past(peaks[None, :], means[None, :], np.array([USER_FACTOR * float(np.nanmax(peaks))])))
    return pasts
