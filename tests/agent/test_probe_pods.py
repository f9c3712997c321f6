"""`tf-agent probe` says who tells the pods of this node, which of them the agent goes by, and why not the others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from grpclib.const import Status
from typer.testing import CliRunner

from agent.cli import app
from agent.kubeapi import ApiAddress, KubeApi
from agent.kubelet.pods import EventKind
from agent.pods import probing
from agent.pods.known import Places
from agent.pods.probing import API_SERVER, DEVICES, DOCUMENT, FILE, KUBELET, Told, probe_pods
from tests.agent.kubelets import GPU_A, NODE, given, kubelet_in, pod


async def probed(places: Places) -> dict[str, Told]:
    """Ask in a thread, as the one who asks has an event loop of its own."""
    return dict(await asyncio.to_thread(probe_pods, places))


def used(found: dict[str, Told]) -> set[str]:
    return {name for name, told in found.items() if told.used}


async def test_a_kubelet_that_tells_is_gone_by_and_counted(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.tell(EventKind.ADDED, pod("a"))
        kubelet.allocations = (given("a", f"{GPU_A}::1", "eth0"), given("b", "eth1"))
        found = await probed(Places(NODE, kubelet=tmp_path))
    assert used(found) == {KUBELET, DOCUMENT, DEVICES}
    assert found[KUBELET].reason == "1 pods"
    assert found[DEVICES].reason == "1 containers with GPUs, 0 with claimed devices; 2 ids name no GPU"
    assert "TF_AGENT_API_URL" in found[API_SERVER].reason


async def test_what_is_absent_or_switched_off_is_said(tmp_path: Path) -> None:
    absent, off = await probed(Places(NODE, kubelet=tmp_path)), await probed(Places(NODE))
    assert used(absent) == used(off) == {DOCUMENT}
    assert "1.37" in absent[KUBELET].reason
    assert absent[DEVICES].reason.endswith("kubelet.sock is not there")
    assert "TF_AGENT_ASK_KUBELET" in off[KUBELET].reason
    assert "TF_AGENT_PODS_FILE" in off[FILE].reason


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_kubelet_that_refuses_or_hangs_is_told_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(probing, "PATIENCE_SECONDS", 0.1)
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.hangs, kubelet.refuses = hangs, Status.UNIMPLEMENTED
        found = await probed(Places(NODE, kubelet=tmp_path))
    assert used(found) == {DOCUMENT}
    words = ("within 0.1 s", "no answer in time") if hangs else ("UNIMPLEMENTED", "UNIMPLEMENTED")
    assert (words[0] in found[KUBELET].reason, words[1] in found[DEVICES].reason) == (True, True)


async def test_a_named_file_is_gone_by_even_where_it_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "pods.json"
    async with kubelet_in(tmp_path):
        file.write_text("[]")
        assert used(await probed(Places(NODE, file, tmp_path))) == {FILE, DOCUMENT, DEVICES}
        file.write_text("{")
        broken = await probed(Places(NODE, file, tmp_path))
    assert used(broken) == {DOCUMENT, DEVICES}
    assert str(file) in broken[FILE].reason


async def test_an_api_server_that_can_not_be_asked_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    api = KubeApi(ApiAddress("http://127.0.0.1:9", tmp_path / "token", None))
    found = await probed(Places(NODE, api=api))
    assert not found[API_SERVER].tells
    assert "/api/v1/pods" in found[API_SERVER].reason


async def test_the_command_looks_where_the_agent_of_the_same_pod_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_AGENT_KUBELET_DIR", str(tmp_path))
    monkeypatch.setenv("TF_AGENT_NODE", NODE)
    async with kubelet_in(tmp_path, pods=False):
        told = await asyncio.to_thread(CliRunner().invoke, app, ["probe", "-o", "json"])
        table = await asyncio.to_thread(CliRunner().invoke, app, ["probe"])
    found = json.loads(told.stdout)["pods"]
    assert found[DEVICES] == {
        "tells": True,
        "used": True,
        "reason": "0 containers with GPUs, 0 with claimed devices; 0 ids name no GPU",
    }
    assert not found[KUBELET]["tells"]
    assert "PODS FROM" in table.stdout
