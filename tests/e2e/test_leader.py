"""Two controllers as processes on a real API server, one leads: it is killed, stopped and told to end, in this order.

Around them a real agent, Prometheus and a worker on a stand-in for the GPU (the stage of the loop's story). Nothing
here depends on how fast the machine is, but the time of the failover is measured and said.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agent.nvml_standin import GIB
from tests.e2e.apiserver import missing_own_reason
from tests.integration import worlds
from tests.integration.manifests import LIMIT_TFLOPS, NAMESPACE, POD
from tests.integration.parts import ANSWER_SECONDS, Program, until
from tests.integration.prometheus_server import free_port, require_prometheus
from tests.integration.recorded import LIMIT_METRIC
from tests.integration.states import LITTLE_TFLOPS, make_still, saturated_push
from tests.integration.story import Story, staged

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_own_reason()), reason=missing_own_reason() or "a server can be started"),
]

LEASE = "tf-autoscaler"
FAILOVER_SECONDS = 20.0
SLOW_MACHINE = 2.0
LIMIT_PATH = r"{.metadata.annotations.tensor-fusion\.ai/tflops-limit}"


@dataclass
class Candidate:
    """One controller: its process, and where it says what it does."""

    program: Program
    url: str

    @property
    def role(self) -> str:
        """What /readyz says; empty while nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=ANSWER_SECONDS) as answer:
                return str(answer.read().decode().strip())
        except urllib.error.HTTPError as error:
            return str(error.read().decode().strip())
        except OSError:
            return ""

    @property
    def leads(self) -> bool:
        role = self.role
        return bool(role) and "standing by" not in role

    @property
    def stands_by(self) -> bool:
        return self.role.startswith("ok: standing by")

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.program.lines() if line.get("event") == event]


@dataclass
class Pair:
    """The stage with two controllers, and every limit that the pod's annotations ever had."""

    story: Story
    first: Candidate
    second: Candidate
    history: Path

    @property
    def lease(self) -> dict[str, Any]:
        found = self.story.world.read("Lease", LEASE)
        return dict(found.get("spec") or {})

    def limits(self) -> list[float]:
        """The annotation's values in order, each change once."""
        values = [float(line) for line in self.history.read_text().split() if line]
        return [value for number, value in enumerate(values) if not number or value != values[number - 1]]


def controller(story: Story, folder: Path, name: str) -> Candidate:
    port = free_port()
    flags = ["--leader-elect", "--lease-namespace", NAMESPACE, "--listen", f"127.0.0.1:{port}"]
    arguments = [
        str(folder / name) if one == str(folder / "tf-autoscaler") else one for one in story.controller.arguments
    ]
    made = Program(name, [*arguments, *flags], folder / f"{name}.log", story.controller.environment)
    return Candidate(made, f"http://127.0.0.1:{port}")


@contextmanager
def watched_limits(world: worlds.ApiServerWorld, place: Path) -> Iterator[None]:
    """Record each value of the pod's limit, as a watch tells it."""
    server = world.server
    command = [
        *(str(server.kubectl), f"--kubeconfig={server.kubeconfig}", "get", "pod", POD, f"--namespace={NAMESPACE}"),
        *("--watch", "-o", f"jsonpath={LIMIT_PATH}{{'\\n'}}"),
    ]
    with place.open("wb") as file, subprocess.Popen(command, stdout=file) as watch:
        try:
            yield
        finally:
            watch.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    require_prometheus()
    folder = tmp_path_factory.mktemp("leader")
    with worlds.api_server_world(folder) as world, staged(world, folder) as story:
        assert isinstance(world, worlds.ApiServerWorld)
        history = folder / "limits.txt"
        first, second = (controller(story, folder, name) for name in ("first", "second"))
        story.controller = first.program
        with watched_limits(world, history):
            try:
                story.worker.demand_tflops, story.worker.demand_vram_bytes = LITTLE_TFLOPS, 6 * GIB
                story.until("the limits of birth are in force", lambda: story.limit_tflops() == LIMIT_TFLOPS)
                story.until("Prometheus has them", lambda: story.series(LIMIT_METRIC) == LIMIT_TFLOPS)
                first.program.start()
                story.until("a first pass was made", lambda: first.role == "ok")
                story.until("the status is written", lambda: story.status().get("autoscaling"))
                second.program.start()
                story.until("the second stands by", lambda: second.stands_by)
                yield Pair(story, first, second, history)
            except BaseException as error:
                error.add_note(story.tails() + first.program.tail() + second.program.tail())
                raise
            finally:
                first.program.end()
                second.program.end()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line of the report, whether or not the test passes."""

    def said(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="", flush=True)

    return said


def test_a_leader_killed_between_its_intent_and_the_push_is_followed_and_the_change_is_made_once(
    pair: Pair, say: Callable[[str], None]
) -> None:
    story, first, second = pair.story, pair.first, pair.second
    assert (first.leads, second.stands_by) == (True, True)
    term = pair.lease["leaseTransitions"]
    make_still(story)
    push = saturated_push(story)
    before, intent = story.quotas(), float(story.annotations()["tflops-limit"])
    told, changes = len(story.to_agent.since(0.0, "PUT", "/")), len(pair.limits())

    first.program.kill()
    killed_at = time.monotonic()
    push.drop()
    # Enough for a raised limit: whoever raises it further has counted the same saturation twice.
    story.write_pause("down")
    story.worker.demand_tflops = 0.7 * intent
    until("the second leads", lambda: second.leads, check=second.program.check)
    led_after = time.monotonic() - killed_at
    until("the change is in force", lambda: story.limit_tflops() == intent, check=second.program.check)
    done_after = time.monotonic() - killed_at
    say(
        f"killed with its intent written: the next one leads after {led_after:.1f} s, has done it after {done_after:.1f} s"
    )

    after = story.quotas()
    assert led_after <= SLOW_MACHINE * FAILOVER_SECONDS
    assert pair.lease["leaseTransitions"] == term + 1
    assert after["epoch"] > before["epoch"]
    assert after["epoch"] >= term + 2
    assert after["generation"] == before["generation"] + 1
    assert len(story.to_agent.since(0.0, "PUT", "/")) == told + 1
    story.controller = second.program
    story.await_passes(3)
    assert pair.limits()[changes - 1 :] == [intent]
    assert float(story.annotations()["tflops-limit"]) == story.limit_tflops() == intent


def test_a_leader_that_was_stopped_finds_another_one_and_stands_by_without_a_write(
    pair: Pair, say: Callable[[str], None]
) -> None:
    story, first, second = pair.story, pair.first, pair.second
    if not first.program.runs:
        first.program.start()
    until("the first stands by", lambda: first.stands_by, check=first.program.check)
    story.pause("true")
    term, epoch, limits = pair.lease["leaseTransitions"], story.quotas()["epoch"], pair.limits()

    second.program.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    until("the first leads", lambda: first.leads, check=first.program.check)
    say(f"stopped by a signal: another one leads after {time.monotonic() - stopped_at:.1f} s")
    story.controller = first.program
    story.await_passes(2)
    puts = len(story.to_agent.since(0.0, "PUT", "/"))
    second.program.signal(signal.SIGCONT)

    until("the second knows", lambda: second.stands_by and second.said("leadership_lost"), check=second.program.check)
    story.await_passes(2)
    assert pair.lease["leaseTransitions"] == term + 1
    assert story.quotas()["epoch"] >= epoch
    assert first.leads
    assert len(story.to_agent.since(0.0, "PUT", "/")) == puts
    assert pair.limits() == limits


def test_a_leader_that_is_told_to_end_gives_the_lease_back_and_the_next_one_leads_at_once(
    pair: Pair, say: Callable[[str], None]
) -> None:
    first, second = (one for one in (pair.first, pair.second))
    leader, other = (first, second) if first.leads else (second, first)
    until("the other one stands by", lambda: other.stands_by, check=other.program.check)
    term = pair.lease["leaseTransitions"]

    leader.program.signal(signal.SIGTERM)
    assert leader.program.wait() == 0
    ended_at = time.monotonic()
    until("the other one leads", lambda: other.leads, check=other.program.check)
    seconds = time.monotonic() - ended_at
    say(f"told to end: the next one leads {seconds:.1f} s after it has")
    assert seconds < 15  # less than the duration that a killed one is given
    assert pair.lease["leaseTransitions"] == term + 1
    assert json.dumps(leader.said("stopped"))
