"""`python -m autoscaler.fit.process FOLDER`: fit what lies in the folder, and lay the outcome beside it.

A process of its own, so that neither the memory nor the time of the fit is the controller's: it limits its own address
space, yields to everything else, and is killed by the one who started it when it takes too long.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Final

import numpy as np

from autoscaler.errors import FitError
from autoscaler.fit.rows import Past
from autoscaler.fit.task import Outcome, Task, fit
from autoscaler.model.forecast import from_json, to_json

TASK, SERIES, OUTCOME = "task.json", "series.npz", "outcome.json"
NICENESS: Final = 10
ADDRESS_SPACE_BYTES: Final = 4 * 2**30
"""Libraries reserve far more than they touch; what a fit touches is measured in docs/benchmarks.md."""


def write_task(folder: Path, task: Task) -> None:
    """Lay a task into a folder."""
    past = task.past
    np.savez(folder / SERIES, peaks=past.peaks, means=past.means, original=past.original)
    model = None if task.in_force is None else to_json(task.in_force)
    document = {"horizons": task.horizons, "now": task.now, "in_force": model}
    (folder / TASK).write_text(json.dumps(document), encoding="utf-8")


def read_task(folder: Path) -> Task:
    """Return the task in a folder."""
    document = json.loads((folder / TASK).read_text(encoding="utf-8"))
    with np.load(folder / SERIES, allow_pickle=False) as arrays:
        past = Past(arrays["peaks"], arrays["means"], arrays["original"])
    in_force = None if document["in_force"] is None else from_json(document["in_force"])
    return Task(past, tuple(document["horizons"]), in_force, document["now"])


def _document(outcome: Outcome) -> str:
    trials = {
        f"{horizon:g}": {"losses": dict(trial.losses), "rows": trial.rows, "refused": trial.refused}
        for horizon, trial in outcome.trials.items()
    }
    return json.dumps({"model": None if outcome.model is None else to_json(outcome.model), "trials": trials})


def main(folder: Path) -> int:
    """Fit; return 0, or 1 with the reason on the standard error."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    try:
        outcome = fit(read_task(folder))
    except (FitError, MemoryError) as error:
        sys.stderr.write(f"{error or 'out of memory'}\n")
        return 1
    (folder / OUTCOME).write_text(_document(outcome), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
