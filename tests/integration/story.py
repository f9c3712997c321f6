"""The stage of the story: a node, its agent, Prometheus, the controller, a cluster, and one worker on a GPU."""

from __future__ import annotations

import json
import signal
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.agent.nvml_standin import NvmlStandIn
from tests.integration.manifests import LIMIT_TFLOPS, NAME, NODE, POD, PREFIX, Manifest, as_kubelet_tells
from tests.integration.parts import DEADLINE_SECONDS, Program, Result, get_json, until
from tests.integration.prometheus_server import PrometheusServer, free_port, prometheus_server
from tests.integration.recorded import Pass, Told, passes_of, told_of
from tests.integration.simulated_worker import SimulatedWorker, simulated_worker
from tests.integration.tap import Tap, tapped
from tests.integration.worlds import World, populate

INTERVAL_SECONDS = 1.5
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
    # What the story holds on the way is not away.
    "AGENT_TIMEOUT_SECONDS": 2 * DEADLINE_SECONDS,
}
PAUSED = "autoscaling-paused"
QUOTAS = "/v1/quotas"


@dataclass(frozen=True)
class Event:
    """An event: what it says, when it was first seen (seconds since the epoch), how often."""

    note: str
    at: float
    count: int


@dataclass
class Story:
    """Everything that plays, the chapters that are `done`, and what the owner `paused` (None: nothing)."""

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
    paused: str | None = None

    def until(self, said: str, condition: Callable[[], Result | None]) -> Result:
        """As `parts.until`, but fail at once when the agent or the controller has ended by itself."""
        return until(said, condition, check=self._check)

    def _check(self) -> None:
        self.agent.check()
        self.controller.check()

    # what the node says
    def quotas(self) -> dict[str, Any]:
        return dict(get_json(f"{self.agent_url}{QUOTAS}"))

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
        looks, asked = self.to_agent.since(0.0, "GET", QUOTAS), self.to_prometheus.since(0.0, "POST", "/api/v1/query")
        return [one for one in passes_of(looks, asked) if one.at >= since]

    def told(self) -> list[Told]:
        """The compute limits that were put into force, in order, the one of birth first."""
        return told_of(self.to_agent.since(0.0, "PUT", QUOTAS), LIMIT_TFLOPS)

    def looks(self, since: float) -> int:
        """How many passes looked at the node since a moment, whether they could read history or not."""
        return len(self.to_agent.since(since, "GET", QUOTAS))

    def await_passes(self, count: int) -> None:
        """Wait until so many passes have looked at the node; all but the last of them are over then."""
        since = time.time()
        self.until(f"{count} passes", lambda: self.looks(since) >= count)

    @contextmanager
    def between_passes(self) -> Iterator[None]:
        """Keep the controller where its next pass looks at the node: what it did before is done and told."""
        look = self.to_agent.hold("GET", QUOTAS)
        try:
            self.until("the next pass looks at the node", look.arrived.is_set)
            yield
        finally:
            look.deliver()

    def until_after_a_pass(self, said: str, condition: Callable[[], Result | None]) -> Result:
        """As `until`, but ask after each pass, while the controller does nothing; no pass is missed."""
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            with self.between_passes():
                if result := condition():
                    return result
            assert time.monotonic() < end, f"after no pass: {said}"

    def write_pause(self, what: str | None) -> None:
        """Pause (`up`, `down` or `true`) or go on (None), as the owner; passes that began earlier don't know of it."""
        self.world.annotate_template(PREFIX + PAUSED, what)
        self.paused = what

    def pause(self, what: str) -> None:
        """Pause, and return when every pass that did not know of it is over."""
        if self.paused != what:
            self.write_pause(what)
            self.await_passes(2)

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
def staged(world: World, folder: Path, **settings: float) -> Iterator[Story]:
    """Start the agent, Prometheus and the controller (with other `settings`) around a worker that does nothing yet."""
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
                {f"TF_AUTOSCALER_{key}": str(value) for key, value in (CONTROLLER_SETTINGS | settings).items()},
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
    return {**standin.environment(), "TF_AGENT_RENDER_SECONDS": "0", "TF_AGENT_PROCESS_LIST_SECONDS": "0.1"}
