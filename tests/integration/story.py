"""The stage of the story: a node, its agent, Prometheus, the controller, a cluster, and one worker on a GPU."""

from __future__ import annotations

import json
import math
import signal
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.agent.nvml_standin import NvmlStandIn
from tests.integration.manifests import NAME, NODE, POD, PREFIX, Manifest, as_kubelet_tells
from tests.integration.parts import Program, get_json, until
from tests.integration.prometheus_server import PrometheusServer, free_port, prometheus_server
from tests.integration.simulated_worker import SimulatedWorker, simulated_worker
from tests.integration.tap import Tap, tapped
from tests.integration.worlds import World, populate

INTERVAL_SECONDS = 2.5
"""Shorter than a bin, so that each bin is evaluated soon after it is complete; without a new one history isn't asked."""

BIN_SECONDS = 5.0
STALE_SECONDS = 40.0
CONTROLLER_SETTINGS = {
    "BIN_SECONDS": BIN_SECONDS,
    "SETTLE_SECONDS": 2.0,
    "STALE_SECONDS": STALE_SECONDS,
    "SCRAPE_INTERVAL_SECONDS": 1.0,
    "HISTORY_SECONDS": 900.0,
    "MIN_SAMPLES": 2,
    "CHECKPOINT_SECONDS": 1.0,
    "AGENT_TIMEOUT_SECONDS": 60.0,
}
WINDOW_QUERY = "tensor_fusion_worker_vram_peak_bytes["
"""Every pass that reads history asks for this metric over just its window."""


@dataclass(frozen=True)
class Event:
    """An event: what it says, when it was first seen (seconds since the epoch), how often."""

    note: str
    at: float
    count: int


@dataclass(frozen=True)
class Pass:
    """A pass's reading of history: when it asked, the window it got an answer for, when the next pass asked.

    All in seconds since the epoch; `until` is infinite for the last one.
    """

    at: float
    start: float
    end: float
    until: float = math.inf


@dataclass
class Story:
    """Everything that plays, and what a reader of the report needs: `said` so far, chapters that are done."""

    world: World
    worker: SimulatedWorker
    agent: Program
    agent_url: str
    controller: Program
    second_controller: Program
    prometheus: PrometheusServer
    to_agent: Tap
    to_prometheus: Tap
    done: set[int] = field(default_factory=set)

    # what the node says
    def quotas(self) -> dict[str, Any]:
        return dict(get_json(f"{self.agent_url}/v1/quotas"))

    def generation(self) -> int:
        return int(self.quotas()["generation"])

    def limit_tflops(self) -> float:
        """The limit in force, as the agent observes it on the running worker; NaN before there is any."""
        workers = self.quotas()["workers"]
        return float(workers[0]["devices"][0]["observed"].get("tflops_limit", "nan")) if workers else float("nan")

    # what Prometheus says
    def series(self, metric: str) -> float | None:
        query = urllib.parse.urlencode({"query": f'{metric}{{workload="{NAME}",pod="{POD}"}}'})
        result = get_json(f"{self.prometheus.url}/api/v1/query?{query}")["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    # what the cluster says
    def annotations(self) -> dict[str, str]:
        """The pod's figures and what else we write, without the prefix."""
        found = self.world.read("Pod", POD)["metadata"]["annotations"]
        return {key.removeprefix(PREFIX): text for key, text in found.items()}

    def status(self) -> dict[str, Any]:
        return dict(self.world.read("TensorFusionWorkload", NAME).get("status") or {})

    def condition(self, type_: str) -> tuple[str, str]:
        """Status and reason of a condition of the workload."""
        found = (one for one in self.status().get("conditions", ()) if one["type"] == type_)
        return next(((one["status"], one["reason"]) for one in found), ("", ""))

    def events(self, reason: str) -> list[Event]:
        """The workload's own events of a reason, oldest first."""
        found = [
            Event(one["note"], datetime.fromisoformat(one["eventTime"]).timestamp(), _count(one))
            for one in self.world.events()
            if one["reason"] == reason and one["regarding"]["kind"] == "TensorFusionWorkload"
        ]
        return sorted(found, key=lambda event: event.at)

    # what the controller does
    def passes(self, since: float = 0.0) -> list[Pass]:
        """The readings of history that were answered in full, in order."""
        asked = self.to_prometheus.since(since, "POST", "/api/v1/query")
        found = []
        for one in asked:
            if one.form("query").startswith(WINDOW_QUERY):
                end = float(one.form("time"))
                milliseconds = one.form("query").removeprefix(WINDOW_QUERY).partition("ms]")[0]
                together = [other for other in asked if abs(other.at - one.at) < 0.8 * INTERVAL_SECONDS]
                if all(other.status[0] == 200 for other in together):
                    found.append(Pass(one.at, end - float(milliseconds) / 1000, end))
        return [replace(one, until=after.at) for one, after in pairwise(found)] + found[-1:]

    def looks(self, since: float) -> int:
        """How many passes looked at the node since a moment, whether they could read history or not."""
        return len(self.to_agent.since(since, "GET", "/v1/quotas"))

    def await_passes(self, count: int) -> None:
        since = time.time()
        until(f"{count} passes", lambda: self.looks(since) >= count)

    @contextmanager
    def controller_paused(self) -> Iterator[None]:
        self.controller.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.controller.signal(signal.SIGCONT)

    def tails(self) -> str:
        log = self.prometheus.folder / "prometheus.log"
        return "\n".join([self.controller.tail(), self.agent.tail(), f"--- prometheus ---\n{log.read_text()[-1000:]}"])


@contextmanager
def staged(world: World, folder: Path) -> Iterator[Story]:
    """Start the agent, Prometheus and the controller around a worker that does nothing yet."""
    standin = NvmlStandIn(folder)
    pod_uid = populate(world)
    (folder / "pods.json").write_text(json.dumps(as_kubelet_tells(pod_uid)))
    port = free_port()
    agent = Program("tf-agent", _agent_command(folder, port), folder / "agent.log", _agent_environment(standin))
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        worker = stack.enter_context(simulated_worker(standin, folder / "limits", pod_uid, folder / "proc"))
        stack.callback(agent.end)
        agent.start()
        until("the agent is ready", lambda: agent.runs and get_json(f"{url}/v1/devices")["devices"])
        targets = [f"127.0.0.1:{port}"]
        prometheus = stack.enter_context(prometheus_server(folder / "prometheus", targets, scrape_interval="1s"))
        to_agent = stack.enter_context(tapped(url))
        to_prometheus = stack.enter_context(tapped(prometheus.url))
        controllers = [
            Program(
                name,
                [
                    "autoscaler",
                    *_controller_command(world, to_prometheus, agent_at),
                    "--state-dir",
                    str(folder / name),
                    *how,
                ],
                folder / f"{name}.log",
                {f"TF_AUTOSCALER_{key}": str(value) for key, value in CONTROLLER_SETTINGS.items()},
            )
            for name, agent_at, how in (("tf-autoscaler", to_agent.url, []), ("second", url, ["--once"]))
        ]
        for controller in controllers:
            stack.callback(controller.end)
        yield Story(world, worker, agent, url, *controllers, prometheus, to_agent, to_prometheus)


def _count(event: Manifest) -> int:
    return int((event.get("series") or {}).get("count", 1))


def _controller_command(world: World, to_prometheus: Tap, agent_url: str) -> list[str]:
    flags = ["--prometheus-url", to_prometheus.url, "--agent", f"{NODE}={agent_url}"]
    return ["run", *world.flags, *flags, "--interval", f"{INTERVAL_SECONDS:g}"]


def _agent_command(folder: Path, port: int) -> list[str]:
    paths = ["--state-dir", "state", "--pods-file", "pods.json", "--proc-root", "proc", "--simulated-dir", "limits"]
    absolute = [part if part.startswith("--") else str(folder / part) for part in paths]
    return [
        "agent", "run", "--node", NODE, "--listen", f"127.0.0.1:{port}", "--backend", "simulated", "--tick", "0.25", *absolute
    ]  # fmt: skip


def _agent_environment(standin: NvmlStandIn) -> dict[str, str]:
    return {**standin.environment(), "TF_AGENT_RENDER_SECONDS": "0", "TF_AGENT_PROCESS_LIST_TICKS": "1"}
