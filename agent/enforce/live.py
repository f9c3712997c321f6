"""What every worker uses now, as the last tick measured it, for backends that cannot see it themselves."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.model.samples import Attribution, NodeSample, Worker, WorkerKey
from autoscaler.contract.quota import Observed

_UNKNOWN = Observed()


class LastUse:
    """Callable as a backend's `LiveUse`."""

    def __init__(self) -> None:
        self._uses: dict[WorkerKey, Observed] = {}
        self._taken: Attribution | None = None
        self._tflops: Mapping[str, float] = {}
        self._indices: Mapping[str, int] = {}

    def __call__(self, worker: Worker, uuid: str) -> Observed:
        """Return the use without limits; nothing is known of a worker that the last tick did not see there."""
        return self._uses.get((worker.pod_uid, worker.container, uuid), _UNKNOWN)

    def tflops_of(self, uuid: str) -> float | None:
        """Return the capacity of a device in FP16 TFLOPs, None where its model is not known."""
        return self._tflops.get(uuid)

    def index_of(self, uuid: str) -> int | None:
        """Return the index the driver gives a device, None for one that the last tick did not see."""
        return self._indices.get(uuid)

    def note(self, key: WorkerKey, vram_bytes: int) -> None:
        """Take what a worker holds by now; the next sample knows more."""
        if key in self._uses:
            self._uses[key] = msgspec.structs.replace(self._uses[key], vram_used_bytes=vram_bytes)

    def update(self, attribution: Attribution, sample: NodeSample, tflops: Mapping[str, float]) -> None:
        """Take a tick's measurements; `tflops` is the capacity by device UUID, without those that are not known.

        The same sample is not taken twice: what was noted since is newer.
        """
        self._tflops = tflops
        if attribution is self._taken:
            return
        self._taken = attribution
        self._indices = {device.uuid: device.index for device in sample.devices}
        uses: dict[WorkerKey, Observed] = {}
        for key, use in attribution.by_key.items():
            capacity, ratio = tflops.get(use.uuid), use.compute_ratio
            used = None if capacity is None or ratio is None else capacity * ratio
            uses[key] = Observed(tflops_used=used, vram_used_bytes=use.vram_bytes)
        self._uses = uses
