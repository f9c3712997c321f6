"""The command `fit`: a forecast model from traces, such as the one that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from autoscaler.errors import AutoscalerError
from autoscaler.fit.rows import Past, to_bins
from autoscaler.fit.task import fit_all
from autoscaler.model.quantity import parse_duration
from autoscaler.replay.trace import read_trace
from autoscaler.state.models import store_model

USER_FACTOR = 1.5
"""The user's own request is taken to be this many times the largest use; it only keeps an idle scale off zero."""


def fit(
    trace: Annotated[list[Path], typer.Option(help="Use of workers, CSV or Parquet; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Where the model goes, JSON.")],
    horizon: Annotated[list[str] | None, typer.Option(help="How far ahead, such as 2h; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="What the model calls itself.")] = "fitted",
) -> None:
    """Fit the forecast's model to traces; each series counts the same. Needs the extra `prediction`."""
    try:
        horizons = tuple(parse_duration(one) for one in horizon or ("30m", "1h", "2h", "4h"))
        pasts = [past for path in trace for past in _pasts(path)]
        store_model(out, fit_all(pasts, horizons, name))
    except AutoscalerError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {len(pasts)} series, horizons {', '.join(f'{one:g} s' for one in horizons)}")


def _pasts(path: Path) -> list[Past]:
    """Return each series of a trace; one with nothing in it is left out."""
    pasts = []
    for demand in read_trace(path).demands:
        peaks, means = to_bins(demand.compute, demand.step)
        if np.isfinite(peaks).any():
            original = np.array([USER_FACTOR * float(np.nanmax(peaks))])
            pasts.append(Past(peaks[None, :], means[None, :], original))
    return pasts
