"""Once a day the model is fitted anew to the fleet's own past, beside the passes, and taken if it is better."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog

from autoscaler.errors import StateError
from autoscaler.fit.process import OUTCOME, write_task
from autoscaler.fit.rows import Past
from autoscaler.fit.task import Task
from autoscaler.model.decision import Field
from autoscaler.model.defaults import MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.forecast import ForecastModel, from_json
from autoscaler.recommend.memory import Learnt
from autoscaler.recommend.series import forecast_rows
from autoscaler.state.models import load_model, store_model

log = structlog.get_logger(__name__)
THREADS: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MOST_SECONDS: Final = 15 * MINUTE
MESSAGE_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a fit ended: the model to use from now on, or None and why not."""

    model: ForecastModel | None
    reason: str
    trials: dict[str, Any] = field(default_factory=dict)


def task_of(fleet: Fleet, learnt: Learnt) -> Task:
    """Return the fit of the horizons that the fleet asks for; copies, since the passes go on."""
    rows, series, model = forecast_rows(fleet), learnt.series, learnt.model
    asked = set(fleet.knobs.forecast_horizon[rows].tolist())
    horizons = asked if model is None else {model.nearest(horizon) for horizon in asked}
    past = Past(
        series.weights("peaks").copy(), series.weights("means").copy(), fleet.original[rows, Field.COMPUTE_REQUEST]
    )
    return Task(past, tuple(sorted(horizons)), model, fleet.now)


async def fit_apart(task: Task, most_seconds: float) -> Verdict:
    """Fit in a process of its own; whatever goes wrong there becomes a reason here."""
    with TemporaryDirectory(prefix="tf-autoscaler-fit-") as name:
        folder = Path(name)
        await asyncio.to_thread(write_task, folder, task)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "autoscaler.fit.process", name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **THREADS},
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), most_seconds)
        except TimeoutError:
            return Verdict(None, f"the fit took longer than {most_seconds:g} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode:
            last = said.decode(errors="replace").strip()[-MESSAGE_CHARACTERS:]
            return Verdict(None, last or f"the fit ended with code {process.returncode}")
        return _verdict(folder)


def _verdict(folder: Path) -> Verdict:
    document = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    trials = document["trials"]
    reasons = [f"{horizon} s ahead: {trial['refused']}" for horizon, trial in trials.items() if trial["refused"]]
    model = None if document["model"] is None else from_json(document["model"])
    return Verdict(model, "; ".join(reasons), trials)


@dataclass
class DailyFit:
    """Starts a fit when one is due, and keeps a model that was better; `period_seconds` 0: never."""

    period_seconds: float
    state_dir: Path | None = None
    """Where a model is kept over a restart; None: it is fitted again."""
    most_seconds: float = MOST_SECONDS
    fitting: Callable[[Task, float], Coroutine[Any, Any, Verdict]] = fit_apart
    started_at: float | None = None
    _running: asyncio.Task[Verdict] | None = None

    def turn(self, fleet: Fleet, learnt: Learnt) -> Verdict | None:
        """Take what has ended, start what is due; never waits. Returns the verdict of a fit that has ended."""
        verdict = self._ended()
        if verdict is not None and verdict.model is not None:
            learnt.model = verdict.model
            self._store(verdict.model)
        if self._due(fleet.now) and learnt.series.keys:
            task = task_of(fleet, learnt)
            self._running = asyncio.create_task(self.fitting(task, self.most_seconds))
        return verdict

    def restore(self, learnt: Learnt) -> None:
        """Put the model that was fitted last back into force."""
        path = self._path
        if path is None or not path.exists():
            return
        try:
            learnt.model = load_model(path)
        except StateError as error:
            log.warning("forecast_model_not_used", error=str(error), then="the shipped one is in force")

    async def close(self) -> None:
        """End a fit that is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    @property
    def _path(self) -> Path | None:
        return None if self.state_dir is None else self.state_dir / "forecast.json"

    def _store(self, model: ForecastModel) -> None:
        if self._path is None:
            return
        try:
            store_model(self._path, model)
        except OSError as error:
            log.warning("forecast_model_not_written", error=str(error))

    def _due(self, now: float) -> bool:
        """Tell whether to start one; the first waits a whole period, since a start is busy enough."""
        if not self.period_seconds or self._running is not None:
            return False
        if self.started_at is None:
            self.started_at = now
        if now - self.started_at < self.period_seconds:
            return False
        self.started_at = now
        return True

    def _ended(self) -> Verdict | None:
        if self._running is None or not self._running.done():
            return None
        task, self._running = self._running, None
        verdict = task.result()
        if verdict.model is None:
            log.warning("forecast_model_refused", reason=verdict.reason, trials=verdict.trials)
        else:
            log.info("forecast_model_taken", trials=verdict.trials)
        return verdict
