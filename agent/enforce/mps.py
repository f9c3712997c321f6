"""CUDA MPS: one control daemon per worker, told over its standard input; limits reach the worker's next process.

NVIDIA's documentation: a changed percentage or memory limit leaves existing clients as they are. A daemon's limits
are for everybody in its pipe folder, so each worker needs one of its own: `<root>/<pod UID>_<container>`, which is the
worker's CUDA_MPS_PIPE_DIRECTORY. A daemon is asked only where something changes, never per tick.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.enforce.actuator import Part, Surroundings, each_part
from agent.enforce.backend import Capabilities
from agent.model.applied import Applied
from agent.model.limits import LimitError
from agent.model.samples import Worker, WorkerId, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

PROGRAM: Final = "nvidia-cuda-mps-control"
ANSWER_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 60.0
"""One that did not answer is not asked again for so long, unless it was started anew: each time is a process."""
CONTROL_PIPE: Final = "control"
"""What the daemon makes in its folder while it runs."""
_MIB: Final = 1 << 20
_REACHED: Final = Capabilities(Effect.NEXT_PROCESS, Effect.NEXT_PROCESS)


@dataclass(frozen=True, slots=True)
class _Silent:
    """A daemon that did not answer: when its pipe was made (ns), when it was asked (seconds), and why not."""

    made_at: int
    asked_at: float
    reason: str


class MpsActuator:
    """Holds what a worker starts next; what runs already keeps what it was started with."""

    name = "mps"

    def __init__(self, around: Surroundings, clock: Callable[[], float] = time.monotonic) -> None:
        self._around, self._clock = around, clock
        self._silent: dict[WorkerId, _Silent] = {}

    def probe(self) -> Capabilities:
        """Return whether MPS can be told anything here."""
        if shutil.which(PROGRAM) is None:
            return _out(f"{PROGRAM} is not installed")
        root = self._around.mps_root
        return _REACHED if root.is_dir() else _out(f"{root} is not there: no worker has a daemon of its own")

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        """Return whether the worker has a daemon of its own that answers."""
        if self._around.index_of(uuid) is None:
            return _out(f"the driver's index of {uuid} is not known yet")
        try:
            made_at = self._made_at(worker)
        except OSError as error:
            return _out(str(error))
        silent = self._silent.get(worker.id)
        if silent and silent.made_at == made_at and self._clock() - silent.asked_at < SILENT_SECONDS:
            return _out(silent.reason)
        try:
            self._ask(worker, "get_default_active_thread_percentage")
        except OSError as error:
            self._silent[worker.id] = _Silent(made_at, self._clock(), str(error))
            return _out(str(error))
        self._silent.pop(worker.id, None)
        return _REACHED

    def observe(self, worker: Worker, uuid: str) -> Observed:  # noqa: ARG002  nothing can be read back
        """Return nothing: what running processes were started with can't be asked for."""
        return Observed()

    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        """Tell the daemon, and every server of its, and read the answer back."""
        return Applied(Effect.NEXT_PROCESS, Observed(), each_part(parts, lambda part: self._tell(worker, quota, part)))

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return nothing: no running process is known to be held."""
        return {}

    def release(self, key: WorkerKey) -> None:
        """Do nothing: the daemon ends with its worker."""

    def turn(self, now: float) -> None:
        """Do nothing: a daemon's limits are nobody else's to change."""

    def restored(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Do nothing: the daemons go on."""

    def _tell(self, worker: Worker, quota: DeviceQuota, part: Part) -> None:
        """Set one part for what starts next, or raise LimitError with why not."""
        if part is Part.COMPUTE:
            percent = max(math.ceil(self._around.share_of(quota) * 100), 1)
            self._set(worker, "active_thread_percentage", f"{percent}")
            told = self._ask(worker, "get_default_active_thread_percentage").strip()
            if not _is_number(told, percent):
                raise LimitError(f"NotTaken: asked for {percent} %, the daemon says {told!r}")
            return
        # The unit the documentation takes: whole mebibytes, rounded down, as a limit may not be passed.
        self._set(
            worker, "device_pinned_mem_limit", f"{self._around.index_of(quota.uuid)} {quota.vram_limit_bytes // _MIB}M"
        )

    def _set(self, worker: Worker, what: str, value: str) -> None:
        """Set a default for servers to come, and for the clients to come of those that run."""
        servers = [line.strip() for line in self._ask(worker, "get_server_list").splitlines()]
        commands = [f"set_default_{what} {value}"]
        commands += [f"set_{what} {server} {value}" for server in servers if server.isdecimal()]
        for command in commands:
            self._ask(worker, command)

    def _made_at(self, worker: Worker) -> int:
        """Return when the worker's daemon made its pipe, in nanoseconds.

        Raises:
            OSError: there is none.
        """
        folder = self._folder(worker)
        try:
            return (folder / CONTROL_PIPE).stat().st_ctime_ns
        except FileNotFoundError:
            raise FileNotFoundError(f"no daemon in {folder}") from None

    def _ask(self, worker: Worker, command: str) -> str:
        """Return the daemon's answer.

        Raises:
            OSError: there is no daemon, or it does not answer.
        """
        folder = self._folder(worker)
        if not (folder / CONTROL_PIPE).exists():
            raise FileNotFoundError(f"no daemon in {folder}")
        try:
            done = subprocess.run(  # noqa: S603  the program's name is fixed, its input is made of numbers
                [shutil.which(PROGRAM) or PROGRAM],
                input=command + "\n",
                env={**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(folder)},
                capture_output=True,
                text=True,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{PROGRAM} in {folder} did not answer {command!r} within {ANSWER_SECONDS:g} s"
            ) from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise OSError(f"{PROGRAM} in {folder} refused {command!r}: {said or done.returncode}")
        return done.stdout

    def _folder(self, worker: Worker) -> Path:
        pod_uid, container = worker.id
        if "/" in pod_uid + container:
            raise OSError(f"{pod_uid}_{container} is no container's name")
        return self._around.mps_root / f"{pod_uid}_{container}"


def _is_number(text: str, wanted: int) -> bool:
    try:
        return math.isclose(float(text), wanted)
    except ValueError:
        return False


def _out(reason: str) -> Capabilities:
    return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, reason)
