"""From pid to worker: recorded cgroup paths, pods files good and broken, pid reuse, tenants who would like to be others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.pods.cgroups import ContainerRef, containers_of
from agent.pods.directory import LOOK_TURNS, PodDirectory, QuotaPods
from agent.pods.file import PodFile
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota

CORPUS = yaml.safe_load(Path(__file__).parents[1].joinpath("captures/cgroups.yaml").read_text(encoding="utf-8"))
UID, OTHER, HASH = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "11111111-2222-3333-4444-555555555555", "b4" * 16
MAIN, SIDECAR = "3f" * 32, "9e" * 32
GIB = 1024**3


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["name"])
def test_a_recorded_path_names_its_pod_and_container(case):
    expected = (ContainerRef(case["pod_uid"], case["container_id"]),) if case["pod_uid"] else ()
    assert containers_of(case["text"]) == expected


def test_a_cluster_inside_a_pod_gives_both_pods_the_outer_first():
    path = f"0::/kubepods/pod{UID}/{MAIN}/kubelet/kubepods/pod{OTHER}/{SIDECAR}"
    assert containers_of(path) == (ContainerRef(UID, MAIN), ContainerRef(OTHER, SIDECAR))


@given(st.text(), st.sampled_from([case["text"] for case in CORPUS]))
def test_no_text_breaks_the_parser_and_none_above_the_pod_hides_it(noise, text):
    containers_of(noise)
    expected = containers_of(text)
    prefix = "".join(c for c in noise if c not in ":/\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
    assert containers_of("\n".join(f"0::/x{prefix}{line.split(':', 2)[-1]}" for line in text.splitlines())) == expected


class Node:
    """A proc tree and a pods file in a directory."""

    def __init__(self, root: Path) -> None:
        self.proc, self.file = root / "proc", root / "pods.json"

    def run(self, pid: int, cgroup: str, started: int = 100, command: str = "python") -> None:
        directory = self.proc / str(pid)
        directory.mkdir(parents=True, exist_ok=True)
        fields = ["S", *["0"] * 18, str(started), *["0"] * 30]
        directory.joinpath("stat").write_text(f"{pid} ({command}) {' '.join(fields)}\n", encoding="utf-8")
        directory.joinpath("cgroup").write_text(cgroup + "\n", encoding="utf-8")

    def end(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))

    def pods(self, *pods: object) -> None:
        self.write(json.dumps(pods))

    def write(self, text: str) -> None:
        draft = self.file.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.file)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.fixture
def source(node):
    return PodFile(node.file, "node-1")


@pytest.fixture
def directory(node, source):
    return PodDirectory(node.proc, [source])


def pod(uid=UID, name="pod-a", annotations=None, **more):
    given = {
        "uid": uid,
        "namespace": "team",
        "name": name,
        "labels": {"tensor-fusion.ai/enabled": "true"},
        "annotations": annotations or {},
    }
    return given | more


def keyed(**values):
    return {f"tensor-fusion.ai/{key.replace('_', '-')}": value for key, value in values.items()}


TWO_CONTAINERS = [{"name": "main", "id": f"containerd://{MAIN}"}, {"name": "proxy", "id": SIDECAR}]
IN_MAIN, IN_SIDECAR = (f"0::/kubepods/burstable/pod{UID}/{container}" for container in (MAIN, SIDECAR))


def test_a_process_belongs_to_the_worker_of_its_container(node, directory):
    node.pods(pod(containers=TWO_CONTAINERS))
    node.run(41, IN_MAIN)
    node.run(42, IN_SIDECAR)
    assert directory.worker_of(41).container == "main"
    assert directory.worker_of(42).container == "proxy"
    assert [worker.container for worker in directory.workers()] == ["main", "proxy"]


def test_inject_container_says_which_container_counts(node, directory):
    node.pods(pod(annotations=keyed(inject_container=" main , "), containers=TWO_CONTAINERS))
    node.run(41, IN_MAIN)
    node.run(42, IN_SIDECAR)
    assert directory.worker_of(41).container == "main"
    assert directory.worker_of(42) is None


def test_a_worker_is_bound_to_the_devices_that_the_scheduler_gave_it(node, directory):
    node.pods(pod(annotations=keyed(gpu_ids="gpu-8a9b, MIG-1C,,gpu-8a9b"), containers=[{"name": "main"}]))
    (worker,) = directory.workers()
    assert worker.devices == ("GPU-8a9b", "MIG-1C")


def test_what_a_pod_of_several_containers_got_is_not_given_to_each_of_them(node, directory):
    bound = keyed(gpu_ids="GPU-a")
    node.pods(pod(annotations=bound, containers=TWO_CONTAINERS))
    assert [worker.devices for worker in directory.workers()] == [(), ()]
    node.pods(pod(annotations=bound | keyed(inject_container="main"), containers=TWO_CONTAINERS))
    assert [(worker.container, worker.devices) for worker in directory.workers()] == [("main", ("GPU-a",))]


def test_the_devices_that_a_container_names_in_its_environment_bind_nobody(node, directory):
    node.pods(pod(containers=[{"name": "main", "id": MAIN}]))
    node.run(41, IN_MAIN)
    (node.proc / "41/environ").write_text("NVIDIA_VISIBLE_DEVICES=GPU-a\0", encoding="utf-8")
    assert directory.worker_of(41).devices == ()


def test_all_processes_of_a_container_are_its_workers_also_a_child_with_another_environment(node, directory):
    node.pods(pod(containers=TWO_CONTAINERS), pod(OTHER, "pod-b"))
    for pid, environment in ((41, "POD_NAME=pod-a\0"), (42, ""), (43, "POD_NAME=pod-b\0")):
        node.run(pid, IN_MAIN, command="VLLM::EngineCore")
        (node.proc / f"{pid}/environ").write_text(environment, encoding="utf-8")
    assert {directory.worker_of(pid) for pid in (41, 42, 43)} == {directory.workers()[0]}


def test_a_restarted_container_of_unknown_id_is_the_only_workers(node, directory):
    node.pods(pod(containers=[{"name": "main", "id": "5c" * 32}, {"name": "inject-lib"}]))
    node.run(41, IN_MAIN)
    assert directory.worker_of(41).container == "main"


def owners(directory, pid, ticks=LOOK_TURNS):
    """Return whose a process is, tick by tick."""
    found = []
    for _ in range(ticks):
        directory.workers()
        found.append(directory.worker_of(pid))
    return [worker and worker.pod for worker in found]


@pytest.mark.parametrize("pid", range(41, 41 + LOOK_TURNS))
def test_a_reused_pid_is_another_process_within_a_few_ticks(node, directory, pid):
    node.pods(pod(), pod(OTHER, "pod-b"))
    node.run(pid, IN_MAIN, started=100)
    assert owners(directory, pid) == ["pod-a"] * LOOK_TURNS
    node.end(pid)
    assert owners(directory, pid)[-1] is None
    node.run(pid, f"0::/kubepods/pod{OTHER}/{SIDECAR}", started=200)
    assert owners(directory, pid) == ["pod-b"] * LOOK_TURNS
    node.end(pid)
    node.run(pid, IN_MAIN, started=300)
    assert owners(directory, pid)[-1] == "pod-a"


def test_a_pid_that_nobody_asked_for_in_a_tick_is_looked_at_when_it_comes_back(node, directory):
    node.pods(pod(), pod(OTHER, "pod-b"))
    node.run(41, IN_MAIN, started=100)
    assert owners(directory, 41, ticks=1) == ["pod-a"]
    directory.workers()
    node.end(41)
    node.run(41, f"0::/kubepods/pod{OTHER}/{SIDECAR}", started=200)
    assert owners(directory, 41, ticks=1) == ["pod-b"]


def test_a_process_belongs_to_its_pod_as_soon_as_that_is_known(node, directory):
    node.pods(pod(OTHER, "pod-b"))
    node.run(41, IN_MAIN)
    assert owners(directory, 41, ticks=2) == [None, None]
    node.pods(pod(), pod(OTHER, "pod-b"))
    assert owners(directory, 41, ticks=1) == ["pod-a"]
    node.pods(pod(OTHER, "pod-b"))
    assert owners(directory, 41, ticks=1) == [None]


def test_a_living_process_is_read_once(node, directory):
    node.pods(pod())
    node.run(41, IN_MAIN, command="a) b (c")
    assert directory.worker_of(41) is not None
    node.run(41, "0::/system.slice", command="a) b (c")
    directory.workers()
    assert directory.worker_of(41) is not None


def test_a_tenants_own_cgroups_and_environment_cannot_steal_attribution(node, directory):
    node.pods(pod(), pod(OTHER, "victim"))
    node.run(41, f"{IN_MAIN}/kubepods/pod{OTHER}/{SIDECAR}")
    (node.proc / "41/environ").write_text("POD_NAME=victim\0POD_NAMESPACE=team\0", encoding="utf-8")
    assert directory.worker_of(41).pod == "pod-a"


def test_a_process_outside_every_known_pod_belongs_to_nobody(node, directory):
    node.pods(pod())
    node.run(41, f"0::/kubepods/pod{OTHER}/{MAIN}")
    node.run(42, "0::/system.slice/sshd.service")
    assert [directory.worker_of(pid) for pid in (41, 42, 43)] == [None, None, None]


def test_a_static_pod_is_found_by_its_config_hash_and_listed_once(node, directory):
    node.pods(pod(annotations={"kubernetes.io/config.hash": HASH}))
    node.run(41, f"0::/kubepods/pod{HASH}/{MAIN}")
    assert directory.worker_of(41).pod_uid == UID
    assert len(directory.workers()) == 1


@pytest.mark.parametrize(
    ("entry", "workload"),
    [
        (pod(labels=keyed(workload="label"), annotations=keyed(workload="annotation"), workload="field"), "label"),
        (pod(annotations=keyed(workload="annotation"), workload="field"), "annotation"),
        (pod(workload="field"), "field"),
        (pod(), "pod-a"),
    ],
)
def test_the_workload_is_the_label_else_the_annotation_else_the_owner_else_the_pod(node, directory, entry, workload):
    node.pods(entry)
    assert directory.workers()[0].workload == workload


def test_pods_of_other_nodes_and_pods_that_take_no_part_are_left_out(node, directory, source):
    node.pods(pod(node="node-2"), pod(OTHER, labels={"app": "web"}), pod(HASH, node="node-1"))
    assert [worker.pod_uid for worker in directory.workers()] == [HASH]
    assert source.problems == ()


def test_annotations_give_the_amounts_a_worker_was_born_with(node, directory):
    amounts = keyed(tflops_request="500m", tflops_limit="1k", vram_request="1.5Gi", vram_limit="4Gi", qos="high")
    node.pods(pod(annotations=amounts), pod(OTHER, annotations=keyed(tflops_limit="10", vram_request="1Gi")))
    full, half = directory.workers()
    assert (full.qos, full.born) == (QoS.HIGH, DeviceQuota("", 0.5, 1000.0, GIB * 3 // 2, 4 * GIB))
    assert half.born == DeviceQuota("", 10.0, 10.0, GIB, GIB)


@pytest.mark.parametrize(
    ("annotations", "named"),
    [
        (keyed(tflops_limit="ten", vram_limit="1Gi"), "tflops-"),
        (keyed(tflops_limit="10", vram_request="2Gi", vram_limit="1Gi"), "vram-request"),
        (keyed(tflops_limit="-1", vram_limit="1Gi"), "tflops-request"),
        (keyed(qos="gold"), "qos"),
        (keyed(inject_container="nobody"), "inject-container"),
    ],
)
def test_a_wrong_annotation_is_named_and_costs_only_its_own_figure(node, directory, source, annotations, named):
    node.pods(pod(annotations=annotations, containers=TWO_CONTAINERS[:1]))
    worker = directory.workers()[0]
    assert (worker.qos, worker.born, worker.container) == (QoS.MEDIUM, None, "main")
    assert [f"tensor-fusion.ai/{named}" in problem and "allowed" in problem for problem in source.problems] == [
        True
    ] * len(source.problems)
    assert source.problems


@pytest.mark.parametrize("broken", ["{", "null", "[1", '{"uid": 1}', "[]\0", ""])
def test_a_broken_file_keeps_the_last_good_one_and_is_reported(node, directory, source, broken):
    node.pods(pod())
    assert len(directory.workers()) == 1
    node.write(broken)
    assert len(directory.workers()) == 1
    assert "last good" in source.problems[0]
    node.pods()
    assert directory.workers() == ()
    assert source.problems == ()


def test_a_broken_entry_leaves_the_others(node, directory, source):
    node.pods({"uid": ""}, 7, pod(), pod(name="twin"))
    assert [worker.pod for worker in directory.workers()] == ["pod-a"]
    assert len(source.problems) == 3


def test_a_file_that_vanishes_and_comes_back_is_read_again(node, directory, source):
    node.pods(pod())
    directory.workers()
    node.file.rename(node.file.with_suffix(".away"))
    assert len(directory.workers()) == 1
    assert source.problems
    node.file.with_suffix(".away").rename(node.file)
    assert len(directory.workers()) == 1
    assert source.problems == ()


def test_the_file_may_be_yaml(tmp_path):
    path = tmp_path / "pods.yaml"
    path.write_text(yaml.safe_dump([pod()]), encoding="utf-8")
    assert list(PodFile(path).pods()) == [UID]
    path.write_text("- uid: [", encoding="utf-8")
    source = PodFile(path)
    assert source.pods() is None
    assert "not YAML" in source.problems[0]


def document(*quotas):
    return QuotaDocument(1, 1, "node-1", quotas)


def test_quota_documents_name_workers_where_no_file_does(node):
    quotas = QuotaPods(lambda: current)
    directory = PodDirectory(node.proc, [quotas])
    node.run(41, IN_MAIN)
    current = None
    assert (directory.workers(), directory.worker_of(41)) == ((), None)
    current = document(WorkerQuota(UID, "team", "pod-a", "work", QoS.LOW, ()))
    assert [(w.pod, w.workload, w.qos) for w in directory.workers()] == [("pod-a", "work", QoS.LOW)]
    assert directory.worker_of(41).pod == "pod-a"


def test_a_worker_that_only_a_quota_names_is_attributed_but_not_kept_alive_by_it(node, source):
    quotas = QuotaPods(lambda: document(WorkerQuota(UID, "team", "pod-a", "work", QoS.LOW, ())))
    directory = PodDirectory(node.proc, [source, quotas])
    node.pods(pod(OTHER, "pod-b"))
    node.run(41, IN_MAIN)
    assert [worker.pod for worker in directory.workers()] == ["pod-b"]
    assert directory.worker_of(41).pod == "pod-a"


def test_this_very_process_is_readable_under_the_real_proc():
    directory = PodDirectory(Path("/proc"), [QuotaPods(lambda: None)])
    assert directory.worker_of(os.getpid()) is None
