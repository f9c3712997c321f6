"""A scenario file: one simulated node, its devices and its workers; YAML or JSON, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.model.samples import Worker
from agent.simulate.characters import CHARACTERS, DIVISORS
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota


class ScenarioError(Exception):
    """The scenario cannot be played; the message lists everything found."""


class ScenarioDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU; its FP16 TFLOPs are those of its model in the GPU table."""

    uuid: str
    model: str
    vram_bytes: int


class Born(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The amounts in the worker's annotations."""

    tflops_request: float
    tflops_limit: float
    vram_request_bytes: int
    vram_limit_bytes: int


class ScenarioWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One vGPU worker; `parameters` replace the defaults of its character."""

    pod_uid: str
    namespace: str
    pod: str
    container: str
    workload: str
    device: str
    character: str
    seed: int
    born: Born | None = None
    qos: QoS = QoS.MEDIUM
    parameters: dict[str, float] = {}

    def worker(self) -> Worker:
        """Return the worker as the agent knows it."""
        born = None
        if self.born is not None:
            born = DeviceQuota("", *msgspec.structs.astuple(self.born))
        identity = (self.pod_uid, self.namespace, self.pod, self.container, self.workload)
        return Worker(*identity, qos=self.qos, born=born, devices=(self.device,))


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node; `start_seconds` (since the epoch) is the midnight at which it begins, by default the first sample."""

    node: str
    devices: tuple[ScenarioDevice, ...]
    workers: tuple[ScenarioWorker, ...]
    start_seconds: float | None = None


def load_scenario(path: Path) -> Scenario:
    """Read and check a scenario.

    Raises:
        ScenarioError: it cannot be read, is malformed, or contradicts itself.
    """
    try:
        scenario = msgspec.yaml.decode(path.read_bytes(), type=Scenario)
    except (OSError, msgspec.DecodeError) as error:
        raise ScenarioError(f"scenario {path}: {error}") from error
    problems = tuple(_problems(scenario))
    if problems:
        raise ScenarioError(f"scenario {path}: " + "; ".join(problems))
    return scenario


def _problems(scenario: Scenario) -> Iterator[str]:
    uuids = [device.uuid for device in scenario.devices]
    yield from (f"device {uuid} is listed twice" for uuid in sorted({one for one in uuids if uuids.count(one) > 1}))
    if not scenario.devices:
        yield "it has no devices"
    seen: set[tuple[str, str]] = set()
    for worker in scenario.workers:
        name = f"worker {worker.namespace}/{worker.pod}/{worker.container}"
        if (worker.pod_uid, worker.container) in seen:
            yield f"{name} is listed twice"
        seen.add((worker.pod_uid, worker.container))
        if worker.device not in uuids:
            yield f"{name}: device {worker.device!r} is not one of {', '.join(uuids)}"
        if worker.character not in CHARACTERS:
            yield f"{name}: character {worker.character!r} is not one of {', '.join(CHARACTERS)}"
            continue
        known = CHARACTERS[worker.character].defaults
        for key in worker.parameters.keys() - known.keys():
            yield f"{name}: {worker.character} has no parameter {key!r}, only {', '.join(known)}"
        yield from _amounts(name, worker)


def _amounts(name: str, worker: ScenarioWorker) -> Iterator[str]:
    for key, value in worker.parameters.items():
        if not 0 <= value < math.inf:
            yield f"{name}: {key} is {value}, must be 0 or more"
        if value == 0 and key in DIVISORS:
            yield f"{name}: {key} must be over 0"
    if worker.born is not None:
        for key, value in msgspec.structs.asdict(worker.born).items():
            if not 0 <= value < math.inf:
                yield f"{name}: born {key} is {value}, must be 0 or more"
