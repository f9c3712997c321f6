"""Where another worker would go: devices of one node, of its model and pool, with its requests free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceInfo
from autoscaler.guard.held import held_numbers
from autoscaler.model.config import Mode, ReplicasPolicy, Step
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.inventory import Device, Inventory
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import GIB
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.workload import Discovered
from tests.autoscaler.shared_devices import NODE, Load, Town

COUNT = Field.REPLICAS
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def device(uuid: str, node: str = "node-b", model: str = H100, pool: str = "", **more: object) -> Device:
    return Device(DeviceInfo(uuid, model, 16 * GIB, 100.0), node, pool, **more)  # type: ignore[arg-type]


@dataclass
class Region(Town):
    """A town whose neighbourhood is known: devices on other nodes, and what others hold on any."""

    around: tuple[Device, ...] = ()
    foreign: dict[str, tuple[float, float]] = field(default_factory=dict)
    is_whole: bool = True

    @property
    def fleet(self) -> Fleet:
        own = tuple(Device(info, NODE) for info in self.state.devices)
        inventory = Inventory((*own, *self.around), self.foreign, self.is_whole)
        workloads = tuple(load.workload for load in self.loads)
        return to_fleet(Snapshot(self.now, Discovered(workloads), {NODE: self.state}, self.quotas, inventory=inventory))


def region(*loads: Load, **more: object) -> Region:
    """Two workers of 4 GiB and 10 TFLOPs each fill half of a device of 16 GiB."""
    for load in loads:
        load.config = replace(load.config, replicas_policy=ReplicasPolicy(Mode.ON, scale_up_step=Step(20)))
    return Region(list(loads), vram=16, tflops=100, **more)  # type: ignore[arg-type]


def grown(town: Region, name: str = "a", to: float = 9.0) -> tuple[float, Verdict]:
    return town.told(town.decide(town.wants(**{name: {COUNT: to}})), name, COUNT)


def test_replicas_grow_by_as_many_workers_as_the_devices_have_room_for():
    assert grown(region(Load("a"))) == (4, Verdict.CAPACITY_LIMITED)  # 16 GiB hold 4 requests of 4
    assert grown(region(Load("a"), around=(device("GPU-8"),))) == (8, Verdict.CAPACITY_LIMITED)
    assert grown(region(Load("a")), to=3) == (3, Verdict.PASSED)


def test_the_scarcer_resource_decides_and_the_room_is_told():
    town = region(Load("a", compute=(40, 50)))
    allowed = town.decide(town.wants(a={COUNT: 9}))
    assert town.told(allowed, "a", COUNT) == (2, Verdict.CAPACITY_LIMITED)  # 100 TFLOPs hold 2 requests of 40
    assert held_numbers(allowed, town.row("a"), COUNT)["room_workers"] == 1


def test_what_others_hold_on_a_device_is_no_room():
    assert grown(region(Load("a"), foreign={"GPU-0": (0.0, 9.0 * GIB)})) == (1, Verdict.CAPACITY_LIMITED)
    assert grown(region(Load("a"), Load("b", vram=(8, 8)))) == (2, Verdict.CAPACITY_LIMITED)


def test_a_worker_of_two_gpus_needs_two_of_one_node():
    pair = Load("a", places=(("GPU-0", "GPU-1"),))
    apart = (device("GPU-7", "node-b"), device("GPU-8", "node-c"))
    assert grown(region(pair, foreign={"GPU-1": (0.0, 10.0 * GIB)}, around=apart)) == (1, Verdict.CAPACITY_LIMITED)
    together = (device("GPU-7", "node-b"), device("GPU-8", "node-b"))
    assert grown(region(pair, foreign={"GPU-1": (0.0, 10.0 * GIB)}, around=together)) == (5, Verdict.CAPACITY_LIMITED)


def test_only_devices_of_its_model_count_whatever_it_is_called():
    load = Load("a")
    load.config = replace(load.config, gpu_model="h100")
    around = (device("GPU-7", model=A100), device("GPU-8", "node-c"))
    assert grown(region(load, around=around)) == (8, Verdict.CAPACITY_LIMITED)


def test_only_devices_of_its_pool_count():
    load = Load("a")
    load.config = replace(load.config, pool="blue")
    around = (device("GPU-7", pool="red"), device("GPU-8", "node-c", pool="blue"))
    assert grown(region(load, around=around)) == (5, Verdict.CAPACITY_LIMITED)  # its own device is of no pool


@pytest.mark.parametrize("more", [{"is_usable": False}])
def test_a_device_that_takes_nobody_is_no_room(more):
    assert grown(region(Load("a"), around=(device("GPU-8", **more),))) == (4, Verdict.CAPACITY_LIMITED)


def test_higher_levels_take_the_room_first():
    town = region(Load("low", QoS.LOW), Load("high", QoS.HIGH))
    allowed = town.decide(town.wants(low={COUNT: 9}, high={COUNT: 3}))
    assert town.told(allowed, "high", COUNT) == (3, Verdict.PASSED)
    assert town.told(allowed, "low", COUNT) == (1, Verdict.CAPACITY_LIMITED)


def test_where_not_all_gpus_are_known_nothing_is_held_back():
    assert grown(region(Load("a"), is_whole=False)) == (9, Verdict.PASSED)


def test_where_waiting_pods_bring_nodes_room_is_not_asked_for():
    town = region(Load("a"))
    town.limits = replace(town.limits, needs_room=False)
    assert grown(town) == (9, Verdict.PASSED)


def test_a_workload_whose_devices_nobody_tells_is_bounded_by_the_model_that_it_asks_for():
    load = Load("a", places=((),))
    load.config = replace(load.config, gpu_model="T4")
    fleet = region(load).fleet
    assert np.isfinite(fleet.device[0, 0])
    assert np.isinf(fleet.device[0, 1])
