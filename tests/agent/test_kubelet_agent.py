"""A running agent beside a kubelet: a worker without a process is shown as 0 with its limit; a kubelet harms no tick."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from grpclib.const import Status

from agent.kubelet.fake import FakeKubelet
from agent.kubelet.pods import EventKind
from tests.agent.kubelets import GPU_A, GPU_B, NODE, given, kubelet_in, pod
from tests.agent.nvml_standin import Device, NvmlStandIn, State

pytestmark = pytest.mark.integration
GIB = 1 << 30
Metrics = Callable[[], "asyncio.Future[str]"]


@asynccontextmanager
async def agent_beside(folder: Path) -> AsyncIterator[Metrics]:
    """Run `tf-agent run` on a node of two devices; yield what fetches its metrics."""
    standin = NvmlStandIn(folder)
    devices = tuple(Device(uuid, "NVIDIA H100 80GB HBM3", 80 * GIB, 0, 0) for uuid in (GPU_A, GPU_B))
    standin.write(State(devices))
    own = {
        "TF_AGENT_NODE": NODE,
        "TF_AGENT_KUBELET_DIR": str(folder),
        "TF_AGENT_STATE_DIR": str(folder / "state"),
        "TF_AGENT_LISTEN": "127.0.0.1:0",
        "TF_AGENT_PORT_FILE": str(folder / "port"),
        "TF_AGENT_BACKEND": "observe",
        "TF_AGENT_RENDER_SECONDS": "0",
        "TF_AGENT_TICK_SECONDS": "0.1",
        "TF_AGENT_API_URL": "",
    }
    elsewhere = {name: text for name, text in os.environ.items() if not name.startswith(("TF_AGENT_", "KUBERNETES_"))}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "run"), env=elsewhere | standin.environment() | own, stderr=log
        )
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:

            async def metrics() -> str:
                try:
                    port = (folder / "port").read_text().strip()
                    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        return await answer.text()
                except (FileNotFoundError, aiohttp.ClientError):
                    return ""

            yield metrics
        assert process.returncode is None, (folder / "log").read_text()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def shown(metrics: Metrics, holds: Callable[[str], bool]) -> str:
    async with asyncio.timeout(30):
        while not holds(text := await metrics()):
            await asyncio.sleep(0.05)
    return text


def value(text: str, family: str, *labels: str) -> float | None:
    """Return the value of the one series of a family that bears these labels, None where there is none."""
    lines = [line for line in text.splitlines() if line.startswith(f"{family}{{")]
    found = [line for line in lines if all(label in line for label in labels)]
    return float(found[0].rsplit(" ", 1)[1]) if len(found) == 1 else None


def ticks(text: str) -> float:
    found = re.search(r"^tensor_fusion_agent_sample_seconds_count(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_a_worker_without_a_process_is_zero_and_limited_where_the_kubelet_put_it(tmp_path: Path) -> None:
    here = ('pod="web"', f'gpu_uuid="{GPU_B}"')
    async with kubelet_in(tmp_path) as kubelet, agent_beside(tmp_path) as metrics:
        kubelet.allocations = (given("web", f"{GPU_B}::3"),)
        kubelet.tell(EventKind.ADDED, pod("web"))
        used = "tensor_fusion_worker_compute_utilization_ratio"
        text = await shown(metrics, lambda text: value(text, used, *here) == 0.0)
        assert value(text, "tensor_fusion_worker_vram_used_bytes", *here) == 0.0
        assert value(text, "tensor_fusion_worker_vram_limit_bytes", *here) == 8 * GIB
        assert value(text, used, 'pod="web"', f'gpu_uuid="{GPU_A}"') is None

        kubelet.tell(EventKind.DELETED, pod("web"))
        await shown(metrics, lambda text: bool(text) and 'pod="web"' not in text)


@pytest.mark.parametrize("trouble", ["hangs", "refuses", "ends"])
async def test_ticks_go_on_and_what_was_known_stays_whatever_the_kubelet_does(tmp_path: Path, trouble: str) -> None:
    here = ('pod="web"', f'gpu_uuid="{GPU_A}"')
    used = "tensor_fusion_worker_compute_utilization_ratio"
    kubelet = FakeKubelet(tmp_path)
    kubelet.allocations = (given("web", GPU_A),)
    kubelet.tell(EventKind.ADDED, pod("web"))
    await kubelet.start()
    try:
        async with agent_beside(tmp_path) as metrics:
            before = await shown(metrics, lambda text: value(text, used, *here) == 0.0)
            await kubelet.stop()
            kubelet.hangs, kubelet.refuses = trouble == "hangs", Status.UNAVAILABLE if trouble == "refuses" else None
            if trouble != "ends":
                await kubelet.start()
            after = await shown(metrics, lambda text: ticks(text) >= ticks(before) + 20)
            assert value(after, used, *here) == 0.0
    finally:
        await kubelet.stop()
