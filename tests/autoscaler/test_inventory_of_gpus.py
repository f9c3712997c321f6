"""What the cluster's GPUs have and who else holds them, from agents, GPU objects and pods."""

from __future__ import annotations

from typing import Any

from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceInfo, DeviceQuota, DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.model.inventory import Inventory
from autoscaler.model.resources import GIB
from autoscaler.model.snapshot import NodeState
from autoscaler.model.workload import ClusterView
from autoscaler.read.capacity import read_inventory
from tests.autoscaler.apply_cases import worker, workload

GPU = "GPU-0a"


def node(name: str, *, gpus: bool = True, **labels: str) -> dict[str, Any]:
    marks = {"kubernetes.io/hostname": f"host-{name}"} | {key.replace("_", "/"): value for key, value in labels.items()}
    capacity = {"cpu": "8"} | ({"nvidia.com/gpu": "1"} if gpus else {})
    return {"kind": "Node", "metadata": {"name": name, "labels": marks}, "status": {"capacity": capacity}}


def gpu(uuid: str = "gpu-0a", host: str = "host-a", **status: Any) -> dict[str, Any]:
    told = {
        "phase": "Running",
        "uuid": uuid,
        "gpuModel": "A100_SXM_80G",
        "capacity": {"tflops": "312", "vram": "80Gi"},
        "available": {"tflops": "312", "vram": "80Gi"},
        "nodeSelector": {"kubernetes.io/hostname": host},
        "usedBy": "tensor-fusion",
    }
    labels = {"tensor-fusion.ai/gpupool": "blue"}
    return {"kind": "GPU", "metadata": {"name": uuid, "labels": labels}, "status": told | status}


def running(*pods: dict[str, Any]) -> dict[str, Any]:
    return {"runningApps": [{"name": "app", "namespace": "ns", "count": len(pods), "pods": list(pods)}]}


def holds(uid: str, tflops: str, vram: str) -> dict[str, Any]:
    return {"name": uid, "namespace": "ns", "uid": uid, "requests": {"tflops": tflops, "vram": vram}}


def agent(name: str = "a", *workers: WorkerStatus, error: str = "", tflops: float | None = 300.0) -> NodeState:
    info = DeviceInfo(GPU, "NVIDIA A100-SXM4-80GB", 80 * GIB, tflops)
    return NodeState(name, (info,), QuotaStatus(name, 1, 1, workers), error)


def read(view: ClusterView, *states: NodeState, workloads: Any = ()) -> Inventory:
    return read_inventory(view, {state.node: state for state in states}, workloads)


def test_gpu_objects_stand_in_where_no_agent_answers():
    found = read(ClusterView(nodes=(node("a"),), gpus=(gpu(),)))
    (device,) = found.devices
    assert (device.info.uuid, device.node, device.pool) == ("gpu-0a", "a", "blue")
    assert (device.info.tflops, device.info.vram_total_bytes) == (312, 80 * GIB)
    assert found.is_whole


def test_an_agent_knows_its_devices_best_and_objects_complete_it():
    (device,) = read(ClusterView(nodes=(node("a"),), gpus=(gpu(),)), agent()).devices
    assert (device.info.uuid, device.info.tflops, device.pool) == (GPU, 300, "blue")
    (device,) = read(ClusterView(nodes=(node("a"),), gpus=(gpu(),)), agent(tflops=None)).devices
    assert device.info.tflops == 312
    assert len(read(ClusterView(nodes=(node("a"),), gpus=(gpu("gpu-0b"),)), agent()).devices) == 1  # one that is gone
    assert len(read(ClusterView(nodes=(node("a"),), gpus=(gpu("gpu-0b"),)), agent(error="away")).devices) == 2


def test_without_objects_the_pool_is_the_nodes_label():
    (device,) = read(ClusterView(nodes=(node("a", **{"tensor-fusion.ai_gpupool": "red"}),)), agent()).devices
    assert device.pool == "red"


def test_a_gpu_that_is_not_running_or_not_tensor_fusions_takes_no_new_worker():
    for more in ({"phase": "Migrating"}, {"usedBy": "nvidia-device-plugin"}):
        (device,) = read(ClusterView(gpus=(gpu(**more),))).devices
        assert not device.is_usable


def test_a_node_with_gpus_that_nobody_tells_of_leaves_the_inventory_open():
    assert not read(ClusterView(nodes=(node("a"), node("b"))), agent()).is_whole
    assert read(ClusterView(nodes=(node("a"), node("b", gpus=False))), agent()).is_whole
    assert not read(ClusterView(), agent()).is_whole


def test_what_others_hold_counts_once_at_the_most_that_anybody_tells():
    told = DeviceQuota(GPU, 10.0, 20.0, 4 * GIB, 8 * GIB)
    status = WorkerStatus("u1", "ns", "p", "w", (DeviceStatus(GPU, True, Effect.IMMEDIATE, Observed(), told),))
    listed = gpu(**running(holds("u1", "12", "2Gi"), holds("u2", "1", "1Gi")))
    found = read(ClusterView(gpus=(listed,)), agent("a", status))
    assert found.foreign == {GPU: (13.0, 5.0 * GIB)}


def test_pods_of_broken_workloads_count_by_their_annotations():
    marks = {
        "tensor-fusion.ai/tflops-request": "30",
        "tensor-fusion.ai/vram-limit": "6Gi",
        "tensor-fusion.ai/gpu-ids": "gpu-0a",
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "uid": "u9", "annotations": marks}}
    assert read(ClusterView(pods=(pod,)), agent()).foreign == {GPU: (30.0, 6.0 * GIB)}
    ended = pod | {"status": {"phase": "Succeeded"}}
    assert read(ClusterView(pods=(ended,)), agent()).foreign == {}


def test_the_fleets_own_workers_are_not_others():
    ours = workload((worker(devices=(GPU,)),))
    listed = gpu(available={"tflops": "302", "vram": "76Gi"}, **running(holds("uid-chat-0", "10", "4Gi")))
    assert read(ClusterView(gpus=(listed,)), agent(), workloads=(ours,)).foreign == {}


def test_what_is_reserved_for_nobody_that_is_named_is_somebodys():
    ours = workload((worker(devices=(GPU,)),))  # 10 TFLOPs and 4 GiB
    booked = gpu(available={"tflops": "292", "vram": "70Gi"})
    assert read(ClusterView(gpus=(booked,)), agent(), workloads=(ours,)).foreign == {GPU: (10.0, 6.0 * GIB)}
