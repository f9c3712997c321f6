"""A folder of manifests as a cluster: what users put there, what breaks, and what is kept."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.errors import ClusterError, ConflictError
from autoscaler.gateways.event_log import KEPT
from autoscaler.gateways.files import LOCK_NAME, locked
from autoscaler.gateways.folder import FolderCluster
from autoscaler.gateways.manifests import parse_file, render_document
from autoscaler.model.steps import Annotate, CreateObject, Emit, Scale, WriteStatus
from autoscaler.model.workload import ClusterView, ObjectRef, ref_of

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat}
spec:
  replicas: 2
  strategy: {type: Recreate}  # a field that nobody here knows
  template:
    metadata:
      labels: {tensor-fusion.ai/enabled: 'true'}
      annotations: {tensor-fusion.ai/tflops-limit: '20'}
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: lab}
spec: {nodeName: node-1}
"""


@dataclass
class SteppedClock:
    at: float = 1_800_000_000.0

    def now(self) -> float:
        self.at += 1
        return self.at


@pytest.fixture
def cluster(tmp_path: Path) -> FolderCluster:
    return FolderCluster(tmp_path, SteppedClock())


def pod_names(view: ClusterView) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in view.pods)


async def test_objects_are_found_in_sub_folders_several_documents_and_lists(
    cluster: FolderCluster, tmp_path: Path
) -> None:
    (tmp_path / "apps" / "deep").mkdir(parents=True)
    (tmp_path / "apps" / "deep" / "chat.yml").write_text(
        DEPLOYMENT + "---\n" + POD % "one" + "--- # last\n" + POD % "two"
    )
    (tmp_path / "list.json").write_text(
        '{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}]}'
    )
    (tmp_path / "notes.txt").write_text("not a manifest")
    (tmp_path / "service.yaml").write_text("{apiVersion: v1, kind: Service, metadata: {name: other}}")

    view = await cluster.read()

    assert pod_names(view) == ["one", "two"]
    assert [item["kind"] for item in view.owners] == ["Deployment"]
    assert [item["metadata"]["name"] for item in view.nodes] == ["node-1"]
    assert view.problems == ()


async def test_a_broken_document_is_a_problem_with_file_and_line_and_the_others_work(
    cluster: FolderCluster, tmp_path: Path
) -> None:
    (tmp_path / "mixed.yaml").write_text(POD % "one" + "---\nkind: Pod\n  bad: [indent\n---\n" + POD % "two")

    view = await cluster.read()

    assert pod_names(view) == ["one", "two"]
    (problem,) = view.problems
    assert problem.source.startswith("mixed.yaml:7:")
    assert problem.allowed == "well-formed YAML"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("just text", "(document)"),
        ("[1, 2]", "(document)"),
        ("{kind: Pod, metadata: {name: a}}", "apiVersion"),
        ("{apiVersion: v1, metadata: {name: a}}", "kind"),
        ("{apiVersion: v1, kind: Pod}", "metadata"),
        ("{apiVersion: v1, kind: Pod, metadata: {}}", "metadata.name"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: <...>}}", "metadata.name"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: ../escape}}", "metadata.name"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: 7}}", "metadata.namespace"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: [1]}", "spec"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, labels: [1]}}", "metadata.labels"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {replicas: 1}}}",
            "metadata.annotations[replicas]",
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {template: {metadata: {annotations: {on: true}}}}}",
            "spec.template.metadata.annotations[True]",
        ),
        ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {template: [1]}}", "spec.template"),
        (
            "{apiVersion: batch/v1, kind: CronJob, metadata: {name: a}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {a: 1}}}}}}}",
            "spec.jobTemplate.spec.template.metadata.labels[a]",
        ),
        ("a: 2026-99-99T00:00:00Z\nb: !!python/object:os.system x", "(document)"),
    ],
)
async def test_a_manifest_that_an_api_server_would_refuse_is_a_problem(
    cluster: FolderCluster, tmp_path: Path, text: str, path: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text(POD % "good")

    view = await cluster.read()

    assert pod_names(view) == ["good"]
    assert path in [problem.path for problem in view.problems]
    assert all(problem.source.startswith("bad.yaml") for problem in view.problems)


async def test_a_file_that_is_not_text_is_a_problem(cluster: FolderCluster, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")

    assert [problem.path for problem in (await cluster.read()).problems] == ["(file)"]


async def test_the_second_of_two_objects_of_one_name_is_a_problem(cluster: FolderCluster, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POD % "same")
    (tmp_path / "b.yaml").write_text(POD % "same")

    view = await cluster.read()

    assert pod_names(view) == ["same"]
    assert [(problem.source, problem.allowed) for problem in view.problems] == [("b.yaml", "one object; see a.yaml")]


async def test_a_folder_that_is_missing_is_an_error_never_an_empty_cluster(tmp_path: Path) -> None:
    cluster = FolderCluster(tmp_path / "absent", SteppedClock())

    with pytest.raises(ClusterError):
        await cluster.read()
    with pytest.raises(ClusterError):
        await cluster.write(Emit(ObjectRef("v1", "Pod", "lab", "one"), "Reason", "message"))


async def test_an_unchanged_folder_is_not_parsed_again(cluster: FolderCluster, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD % "one")

    first = await cluster.read()
    second = await cluster.read()

    assert second is first


async def test_only_the_file_that_changed_is_parsed_again(cluster: FolderCluster, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(POD % "one")
    (tmp_path / "two.yaml").write_text(POD % "two")
    before = {pod["metadata"]["name"]: pod for pod in (await cluster.read()).pods}

    (tmp_path / "two.yaml").write_text((POD % "two").replace("node-1", "node-2"))

    after = {pod["metadata"]["name"]: pod for pod in (await cluster.read()).pods}
    assert after["one"] is before["one"]
    assert after["two"]["spec"]["nodeName"] == "node-2"


async def test_an_edit_by_hand_raises_the_version_and_of_the_spec_the_generation(
    cluster: FolderCluster, tmp_path: Path
) -> None:
    path = tmp_path / "chat.yaml"
    path.write_text(DEPLOYMENT)
    (first,) = (await cluster.read()).owners

    path.write_text(DEPLOYMENT.replace("replicas: 2", "replicas: 3"))
    (second,) = (await cluster.read()).owners
    path.write_text(
        DEPLOYMENT.replace("replicas: 2", "replicas: 3").replace("{name: chat}", "{name: chat, labels: {a: b}}")
    )
    (third,) = (await cluster.read()).owners

    generations = [item["metadata"]["generation"] for item in (first, second, third)]
    versions = [int(item["metadata"]["resourceVersion"]) for item in (first, second, third)]
    assert generations == [1, 2, 2]
    assert versions[0] < versions[1] < versions[2]
    assert len({item["metadata"]["uid"] for item in (first, second, third)}) == 1


async def test_a_comment_added_by_hand_changes_no_version(cluster: FolderCluster, tmp_path: Path) -> None:
    path = tmp_path / "chat.yaml"
    path.write_text(DEPLOYMENT)
    (first,) = (await cluster.read()).owners

    path.write_text("# a comment\n" + DEPLOYMENT)
    (second,) = (await cluster.read()).owners

    assert second is first


async def test_times_stay_strings_in_both_directions(cluster: FolderCluster, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text((POD % "one").replace("lab}", "lab, creationTimestamp: 2026-01-02T03:04:05Z}"))
    (pod,) = (await cluster.read()).pods
    assert pod["metadata"]["creationTimestamp"] == "2026-01-02T03:04:05Z"

    await cluster.write(Annotate(ref_of(pod), {"example.com/at": "2027-01-01T00:00:00Z"}))

    (again,) = (await FolderCluster(tmp_path, SteppedClock()).read()).pods
    assert again["metadata"]["creationTimestamp"] == "2026-01-02T03:04:05Z"
    assert again["metadata"]["annotations"] == {"example.com/at": "2027-01-01T00:00:00Z"}


async def test_a_write_keeps_unknown_fields_and_the_other_documents_as_they_are_even_broken_ones(
    cluster: FolderCluster, tmp_path: Path
) -> None:
    broken = "---\n{not: [closed\n"
    path = tmp_path / "chat.yaml"
    path.write_text(broken + "---\n" + DEPLOYMENT + "---\n# mine\n" + POD % "one")
    (deployment,) = (await cluster.read()).owners

    await cluster.write(Scale(ref_of(deployment), 5))

    text = path.read_text()
    assert text.startswith(broken)
    assert text.endswith("---\n# mine\n" + POD % "one")
    (found,) = (await FolderCluster(tmp_path, SteppedClock()).read()).owners
    assert found["spec"]["strategy"] == {"type": "Recreate"}
    assert found["spec"]["replicas"] == 5


async def test_an_item_of_a_list_can_be_written_and_the_others_stay(cluster: FolderCluster, tmp_path: Path) -> None:
    items = ", ".join(f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}" for name in ("one", "two"))
    (tmp_path / "list.yaml").write_text(f"{{apiVersion: v1, kind: List, items: [{items}]}}")
    one = next(pod for pod in (await cluster.read()).pods if pod["metadata"]["name"] == "one")

    await cluster.write(Annotate(ref_of(one), {"a": "b"}))

    found = {pod["metadata"]["name"]: pod for pod in (await FolderCluster(tmp_path, SteppedClock()).read()).pods}
    assert found["one"]["metadata"]["annotations"] == {"a": "b"}
    assert found["two"]["metadata"]["name"] == "two"


async def test_a_created_object_gets_a_file_of_its_own_named_after_it(cluster: FolderCluster, tmp_path: Path) -> None:
    manifest = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "TensorFusionWorkload",
        "metadata": {"name": "chat", "namespace": "lab"},
        "spec": {},
    }

    await cluster.write(CreateObject(manifest))

    stored = yaml.safe_load((tmp_path / "tensorfusionworkload-lab-chat.yaml").read_text())
    assert stored["metadata"]["name"] == "chat"


async def test_a_created_object_never_replaces_a_file_that_is_there(cluster: FolderCluster, tmp_path: Path) -> None:
    path = tmp_path / "pod-lab-one.yaml"
    path.write_text("{broken")

    with pytest.raises(ConflictError):
        await cluster.write(CreateObject(yaml.safe_load(POD % "one")))

    assert path.read_text() == "{broken"


async def test_a_name_that_would_leave_the_folder_is_refused(cluster: FolderCluster, tmp_path: Path) -> None:
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "../../escape"}}

    with pytest.raises(ClusterError):
        await cluster.write(CreateObject(manifest))


async def test_a_kind_without_replicas_is_not_scaled(cluster: FolderCluster, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD % "one")
    (pod,) = (await cluster.read()).pods

    with pytest.raises(ClusterError):
        await cluster.write(Scale(ref_of(pod), 2))


async def test_two_processes_that_share_a_folder_see_each_others_writes_and_lose_none(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD % "one")
    one, two = FolderCluster(tmp_path, SteppedClock()), FolderCluster(tmp_path, SteppedClock())
    (pod,) = (await one.read()).pods
    await two.read()

    await asyncio.gather(
        *(
            cluster.write(Annotate(ref_of(pod), {f"{who}/{number}": "1"}))
            for number in range(10)
            for who, cluster in (("one", one), ("two", two))
        )
    )

    (seen_by_one,), (seen_by_two,) = (await one.read()).pods, (await two.read()).pods
    assert len(seen_by_one["metadata"]["annotations"]) == 20
    assert seen_by_one == seen_by_two


async def test_a_lock_that_another_process_keeps_is_an_error_in_the_end(tmp_path: Path) -> None:
    handle = os.open(tmp_path / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)

    with pytest.raises(ClusterError, match="locked"):
        async with locked(tmp_path, wait_seconds=0.05):
            pass

    os.close(handle)
    async with locked(tmp_path, wait_seconds=0.05):
        pass


async def test_events_are_bounded_and_the_newest_stay(cluster: FolderCluster, tmp_path: Path) -> None:
    ref = ObjectRef("v1", "Pod", "lab", "one", uid="1")
    for number in range(KEPT + 3):
        await cluster.write(Emit(ref, "Reason", f"message {number}", warning=True))

    events = [document.objects[0] for document in parse_file((tmp_path / "events.yaml").read_text(), "events.yaml")]
    assert [event["note"] for event in events] == [f"message {number}" for number in range(3, KEPT + 3)]
    assert {event["type"] for event in events} == {"Warning"}


async def test_events_survive_a_restart_and_are_counted_on(cluster: FolderCluster, tmp_path: Path) -> None:
    ref = ObjectRef("v1", "Pod", "lab", "one", uid="1")
    await cluster.write(Emit(ref, "Reason", "message"))

    await FolderCluster(tmp_path, SteppedClock()).write(Emit(ref, "Reason", "message"))
    await cluster.write(Emit(ref, "Reason", "message"))

    (event,) = yaml.safe_load_all((tmp_path / "events.yaml").read_text())
    assert event["series"]["count"] == 3


async def test_a_status_of_tuples_and_enums_is_written_as_plain_yaml(cluster: FolderCluster, tmp_path: Path) -> None:
    from autoscaler.contract.keys import QoS

    (tmp_path / "chat.yaml").write_text(
        "{apiVersion: tensor-fusion.ai/v1, kind: TensorFusionWorkload, metadata: {name: chat}, spec: {}}"
    )
    (workload,) = (await cluster.read()).workloads

    await cluster.write(WriteStatus(ref_of(workload), {"conditions": ({"type": QoS.HIGH},)}))

    stored: Any = yaml.safe_load((tmp_path / "chat.yaml").read_text())
    assert stored["status"] == {"conditions": [{"type": "high"}]}


tricky = [
    "true",
    "No",
    "null",
    "~",
    "1e3",
    "0x1f",
    "1:30",
    "2026-01-01",
    "=",
    "",
    "<<",
    "",
    ".inf",
    "-a",
    "a:b",
    "a#",
    "*x",
    "&y",
    "!z",
    "@",
    "`",
    "%",
    ",",
    "{}",
    "[]",
    "|-",
    "\u2028",
    "é",
    "😀",
    "a\nb",
]
texts = st.text(max_size=20) | st.sampled_from(tricky) | st.text("Aa1:-# '\"\\.~", max_size=6)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(texts, plain_values, max_size=4))
def test_what_is_rendered_is_parsed_back_the_same(spec: dict[str, Any]) -> None:
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}

    (document,) = parse_file(render_document([manifest]).text, "pod.yaml")

    assert document.problems == ()
    assert document.objects == (manifest,)
