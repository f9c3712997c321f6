"""Who is asked for the pods of a node, and that whoever follows them goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog.testing

from agent.pods import known
from agent.pods.allocated import AllocatedDevices
from agent.pods.directory import QuotaPods
from agent.pods.known import Places, node_pods
from tests.agent.kubelets import NODE, running, until


def test_a_file_that_is_named_goes_before_kubelet_and_api_server(tmp_path: Path) -> None:
    (tmp_path / "pods.json").write_text(
        '[{"uid": "u", "namespace": "chat", "name": "web", "labels": {"tensor-fusion.ai/enabled": "true"}}]'
    )
    places = Places(NODE, tmp_path / "pods.json", tmp_path, None)
    pods = node_pods(places, QuotaPods(lambda: None), lambda: 0.0)
    assert [set(source.pods() or ()) for source in pods.sources] == [{"u"}, set()]
    assert [type(one.follower) for one in pods.followers] == [AllocatedDevices]
    assert pods.exits is None


def test_who_asks_nobody_knows_what_documents_name(tmp_path: Path) -> None:
    pods = node_pods(Places(NODE), QuotaPods(lambda: None), lambda: 0.0)
    assert (len(pods.sources), pods.followers, pods.exits) == (1, (), None)


async def test_a_follower_that_ends_unforeseen_is_told_and_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "ANEW_SECONDS", 0.01)
    begun = []

    class Fragile:
        async def run(self) -> None:
            begun.append(1)
            if len(begun) < 3:
                raise KeyError("unforeseen")
            await asyncio.Event().wait()

    with structlog.testing.capture_logs() as lines:
        async with running(known.Kept(Fragile())):
            await until(lambda: len(begun) == 3)
    assert [line["event"] for line in lines] == ["follower_ended", "follower_ended"]
