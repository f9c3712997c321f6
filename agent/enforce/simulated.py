"""The backend for simulated workers: limits in memory, and, given a directory, in one file per worker and device.

A simulated worker obeys what it finds here, at once: the in-process simulation asks `limits_of`, a worker that is a
process of its own reads `<pod uid>_<container>_<device uuid>.json`, a device's quota as documents have it. The
files outlive the agent, so that a restarted one takes up the limits in force as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote as url_quote
from urllib.parse import unquote

import msgspec

from agent.enforce.backend import BackendError, Capabilities, LiveUse
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed


class SimulatedBackend:
    """Holds simulated workers to their limits.

    A VRAM limit below what is in use is refused, as a real worker could not give the memory back, unless
    `shrink_below_use` is set: then the worker dies of it, as it would under a hard limit.
    """

    name = "simulated"

    def __init__(self, live_use: LiveUse, directory: Path | None = None, *, shrink_below_use: bool = False) -> None:
        self._live_use = live_use
        self._directory = directory
        self._shrink_below_use = shrink_below_use
        self._limits: dict[WorkerKey, DeviceQuota] = {}

    def probe(self) -> Capabilities:
        """Return immediate effect for both resources, and adopt the files of an earlier run."""
        if self._directory is not None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._limits = dict(map(_read, sorted(self._directory.glob("*_*_*.json"))))
            except (OSError, msgspec.DecodeError) as error:
                raise BackendError(f"simulated workers' directory {self._directory}: {error}") from error
        return Capabilities(Effect.IMMEDIATE, Effect.IMMEDIATE)

    def limits_of(self, worker: Worker, uuid: str) -> DeviceQuota | None:
        """Return what the worker must obey on the device; None when no limit was set."""
        return self._limits.get((*worker.id, uuid))

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the limits in force beside the live use."""
        use, limits = self._live_use(worker, uuid), self.limits_of(worker, uuid)
        if limits is None:
            return use
        return Observed(limits.tflops_limit, limits.vram_limit_bytes, use.tflops_used, use.vram_used_bytes)

    def apply(self, worker: Worker, quota: DeviceQuota) -> Applied:
        """Set both limits; VRAM below live use keeps the VRAM limit that is in force and says so."""
        vram_bytes, reason = quota.vram_limit_bytes, ""
        used = self._live_use(worker, quota.uuid).vram_used_bytes
        before = self.limits_of(worker, quota.uuid)
        lowers = before is None or vram_bytes < before.vram_limit_bytes
        if used is not None and vram_bytes < used and lowers and not self._shrink_below_use:
            reason = f"VRAMInUse: a limit of {vram_bytes} bytes is below the {used} in use"
            if before is None:
                return Applied(Effect.IMMEDIATE, self.observe(worker, quota.uuid), reason)
            vram_bytes = before.vram_limit_bytes
        self._set((*worker.id, quota.uuid), msgspec.structs.replace(quota, vram_limit_bytes=vram_bytes))
        return Applied(Effect.IMMEDIATE, self.observe(worker, quota.uuid), reason)

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return the VRAM limits of all workers."""
        return {key: limits.vram_limit_bytes for key, limits in self._limits.items()}

    def release(self, key: WorkerKey) -> None:
        """Remove the limits and their file."""
        if self._directory is not None:
            _path(self._directory, key).unlink(missing_ok=True)
        self._limits.pop(key, None)

    def turn(self, now: float) -> None:
        """Do nothing: simulated workers obey at once."""

    def restored(self) -> int:
        """Return 0: simulated workers leave their limits alone."""
        return 0

    def serves(self, key: WorkerKey) -> str:  # noqa: ARG002  it is the same for all
        """Return its name."""
        return self.name

    def close(self) -> None:
        """Do nothing: the limits stay where they are."""

    def _set(self, key: WorkerKey, limits: DeviceQuota) -> None:
        if self._directory is not None and limits != self._limits.get(key):
            path = _path(self._directory, key)
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(msgspec.json.encode(limits))
            temporary.replace(path)
        self._limits[key] = limits


def _path(directory: Path, key: WorkerKey) -> Path:
    # '_' separates the parts, so it must not occur inside one.
    return directory / ("_".join(url_quote(part, safe="").replace("_", "%5F") for part in key) + ".json")


def _read(path: Path) -> tuple[WorkerKey, DeviceQuota]:
    pod_uid, container, uuid = map(unquote, path.name.removesuffix(".json").split("_"))
    return (pod_uid, container, uuid), msgspec.json.decode(path.read_bytes(), type=DeviceQuota)
