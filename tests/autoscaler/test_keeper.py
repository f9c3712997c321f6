"""What is done before anything is decided: owners on record, notices told once, refusals that stop nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.contract import keys
from autoscaler.errors import ClusterError, ConflictError
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.steps import Annotate, ClusterWrite, CreateObject, Emit, Own
from autoscaler.model.workload import ClusterView, ref_of
from autoscaler.read.discovery import discover
from autoscaler.read.keeper import REFUSED_SECONDS, Keeper
from autoscaler.read.notices import notices_of
from tests.autoscaler.test_discovery import AMOUNTS, Manifest, chat, deployment, obj, owned_by, pod, template

NOW = 1_800_000_000.0
GENERATED = {"app.kubernetes.io/managed-by": "tensor-fusion-autoscaler"}


class HandClock:
    """A clock that stands still."""

    def now(self) -> float:
        return NOW


@dataclass
class Recorder:
    """The writing side of the Cluster port: keeps what was written; refuses what a test tells it to."""

    refusals: dict[type, Exception] = field(default_factory=dict)
    writes: list[ClusterWrite] = field(default_factory=list)

    async def read(self) -> ClusterView:
        raise NotImplementedError

    async def write(self, write: ClusterWrite) -> None:
        if type(write) in self.refusals:
            raise self.refusals[type(write)]
        self.writes.append(write)

    async def close(self) -> None:
        return None

    def of(self, kind: type) -> list[Any]:
        return [write for write in self.writes if isinstance(write, kind)]


def snapshot(view: ClusterView, now: float = NOW) -> Snapshot:
    return Snapshot(now, discover(view, {}), {})


def shared(*on_record: str, labels: Mapping[str, str] = GENERATED) -> ClusterView:
    """Deployments `one` and `two` that share a workload which has these owners on record."""
    marks = AMOUNTS | {keys.WORKLOAD: "shared"}
    references = [owned_by("Deployment", name)[0] for name in on_record]
    workload = obj("TensorFusionWorkload", "shared", labels=dict(labels), ownerReferences=references)
    return ClusterView(workloads=(workload,), owners=tuple(deployment(name, marks) for name in ("one", "two")))


async def kept(view: ClusterView, cluster: Recorder | None = None, keeper: Keeper | None = None) -> Recorder:
    cluster = cluster or Recorder()
    await (keeper or Keeper()).keep(cluster, snapshot(view))
    return cluster


# Owners on record


async def test_a_sharer_that_comes_later_is_put_on_record_behind_the_others() -> None:
    (own,) = (await kept(shared("one"))).of(Own)
    assert [(owner.kind, owner.name, owner.uid) for owner in own.owners] == [
        ("Deployment", "one", "Deployment-one"),
        ("Deployment", "two", "Deployment-two"),
    ]


async def test_one_who_left_is_taken_off_the_record() -> None:
    (own,) = (await kept(shared("one", "two", "gone"))).of(Own)
    assert [owner.name for owner in own.owners] == ["one", "two"]


@pytest.mark.parametrize(
    "view",
    [shared("one", "two"), shared("two", "one"), shared("one", labels={}), shared("gone"), chat()],
    ids=["all on record", "in another order", "made by a user", "of owners that are gone", "not there yet"],
)
async def test_otherwise_the_record_is_left_as_it_is(view: ClusterView) -> None:
    assert (await kept(view)).of(Own) == []


async def test_a_record_that_may_not_be_changed_is_told_once_and_tried_again_after_a_while() -> None:
    cluster, keeper = Recorder({Own: ClusterError("the API server answered 403: cannot set an ownerRef")}), Keeper()

    for _ in range(3):
        assert await keeper.keep(cluster, snapshot(shared("one"))) is False

    told = cluster.of(Emit)
    assert [(one.ref.kind, one.ref.name) for one in told] == [
        ("TensorFusionWorkload", "shared"),
        ("Deployment", "one"),
        ("Deployment", "two"),
    ]
    assert all(one.warning and one.reason == "OwnerNotRecorded" for one in told)
    assert "403" in told[0].message
    assert "grant delete on tensorfusionworkloads" in told[0].message
    cluster.refusals.clear()
    assert await keeper.keep(cluster, snapshot(shared("one"), NOW + 60)) is False
    assert await keeper.keep(cluster, snapshot(shared("one"), NOW + REFUSED_SECONDS)) is True


async def test_a_record_that_changed_meanwhile_is_looked_at_again_in_the_next_pass() -> None:
    cluster, keeper = Recorder({Own: ConflictError("changed")}), Keeper()
    await keeper.keep(cluster, snapshot(shared("one")))
    cluster.refusals.clear()
    assert await keeper.keep(cluster, snapshot(shared("one"))) is True
    assert cluster.of(Emit) == []


async def test_a_creation_that_fails_stops_no_other() -> None:
    cluster = Recorder({CreateObject: ClusterError("no")})
    view = replace(shared("one"), owners=(*shared().owners, deployment("new", AMOUNTS)))
    await kept(view, cluster)
    assert len(cluster.of(Own)) == 1


async def test_a_takeover_that_fails_half_way_tells_nothing() -> None:
    edited = AMOUNTS | {keys.AUTO_LIMITS: "true"}
    marks = edited | {keys.TFLOPS_LIMIT: "50", keys.AUTOSCALING_APPLIED: '{"tflops-limit":"30"}'}
    view = chat(edited, pods=1)
    view.pods[0]["metadata"]["annotations"] = marks
    found = obj("TensorFusionWorkload", "chat", labels=GENERATED, ownerReferences=owned_by("Deployment", "chat"))
    view = replace(view, workloads=(found,))

    assert len((await kept(view)).of(Emit)) == 2
    assert (await kept(view, Recorder({Annotate: ConflictError("edited again")}))).writes == []


async def test_a_folder_keeps_the_record_too_and_an_unchanged_one_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(shared("one").workloads[0]))
    cluster = FolderCluster(tmp_path, HandClock())
    (before,) = (await cluster.read()).workloads
    own = Own(ref_of(before), tuple(ref_of(owner) for owner in shared().owners))

    await cluster.write(own)

    (after,) = (await cluster.read()).workloads
    assert [one["name"] for one in after["metadata"]["ownerReferences"]] == ["one", "two"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    written = (tmp_path / "shared.yaml").stat().st_mtime_ns
    await cluster.write(own)
    assert (tmp_path / "shared.yaml").stat().st_mtime_ns == written


# Pods that go


def test_pods_that_go_or_whose_owner_has_gone_found_no_workload() -> None:
    marks = AMOUNTS | {keys.WORKLOAD: "shared"}
    going = pod("going", marks, deletionTimestamp="2026-01-02T00:00:00Z")
    orphan = pod("orphan", marks, ownerReferences=owned_by("ReplicaSet", "gone"))
    found = discover(ClusterView(pods=(going, orphan)), {})

    assert not found.workloads
    assert not found.broken
    assert [problem.source for problem in found.problems] == ["Pod lab/orphan"]


def test_a_pod_that_goes_is_still_a_worker_of_the_workload_that_is_there() -> None:
    view = chat(pods=2)
    view.pods[0]["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    (workload,) = discover(view, {}).workloads
    assert sorted((worker.ref.name, worker.ready) for worker in workload.workers) == [
        ("chat-7f-0", False),
        ("chat-7f-1", True),
    ]


# Notices


def owner(template_metadata: Manifest, **metadata: Any) -> Manifest:
    made = obj("Deployment", "chat", spec={"template": template(AMOUNTS)}, **metadata)
    made["spec"]["template"]["metadata"] = template_metadata
    return made


TAKES_PART = {"labels": {keys.ENABLED: "true"}, "annotations": AMOUNTS}


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (owner(TAKES_PART), []),
        (owner({}, annotations={"example.com/a": "b"}), []),
        (owner(TAKES_PART, annotations={keys.QOS: "high"}), [("MisplacedKey", keys.QOS)]),
        (owner({}, labels={keys.ENABLED: "true"}), [("MisplacedKey", "its pods take no part")]),
        (owner(TAKES_PART, labels={keys.ENABLED: "true"}), []),
        (
            owner({"labels": {"tensor-fusion.ai/enabeld": "true"}}),
            [("MisspeltKey", "did you mean tensor-fusion.ai/enabled?")],
        ),
        (
            owner({**TAKES_PART, "annotations": {"tensor-fusion.ai/tflops-limits": "20"}}),
            [("MisspeltKey", "did you mean tensor-fusion.ai/tflops-limit?")],
        ),
        (owner(TAKES_PART, annotations={keys.QOS: "high"}, ownerReferences=owned_by("Rollout", "chat")), []),
    ],
)
def test_keys_in_the_wrong_place_and_misspelt_ones_are_named(manifest: Manifest, told: list[tuple[str, str]]) -> None:
    notices = notices_of([manifest])
    assert [notice.reason for notice in notices] == [reason for reason, _ in told]
    assert all(text in notice.message for notice, (_, text) in zip(notices, told, strict=True))


async def test_a_notice_is_told_once_and_again_when_it_says_something_else() -> None:
    keeper, cluster = Keeper(), Recorder()
    for marks in ({keys.QOS: "high"}, {keys.QOS: "low"}, {keys.REPLICAS: "2"}):
        await keeper.keep(cluster, snapshot(ClusterView(owners=(owner(TAKES_PART, annotations=marks),))))
    assert [one.reason for one in cluster.of(Emit)] == ["MisplacedKey", "MisplacedKey"]
