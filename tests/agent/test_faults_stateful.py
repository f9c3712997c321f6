"""Any mixture of documents, use, tenants, clocks and restarts: the device is never promised twice, and words are true.

Every document names every worker that runs: one that is left out keeps its old limit uncounted, which is not solved.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import structlog
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.enforce.tfshm_layout import MEM_LIMIT, open_state, slots_of
from agent.model.samples import SourceError
from autoscaler.contract.keys import QoS
from tests.agent.faulty import GIB, GPU, TOTAL, Asked, Node, Steps, document, stopping

NAMES = ("a", "b", "c")


def _asked(name: str) -> st.SearchStrategy[Asked]:
    return st.builds(
        lambda request, more, tflops, qos: Asked(name, request, min(80, request + more), tflops, qos),
        st.integers(0, 26),
        st.integers(0, 60),
        st.sampled_from([5.0, 100.0, 300.0]),
        st.sampled_from(list(QoS)),
    )


class Life(RuleBasedStateMachine):
    """One node's."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.node = Node(self.root, NAMES)
        self.generation = 0
        with structlog.testing.capture_logs():
            self.agent = self.node.start()
            self.node.tick(self.agent)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.node.kill(self.agent)
            shutil.rmtree(self.root)

    @rule(asked=st.tuples(*map(_asked, NAMES)), step=st.none() | st.integers(0, 45))
    def told(self, asked: tuple[Asked, ...], step: int | None) -> None:
        """Tell of new amounts; with a `step` the agent is killed there, and another one starts."""
        self.generation += 1
        with structlog.testing.capture_logs():
            if step is None:
                self.agent.put(document(self.generation, *asked), self.node.at)
                return
            with stopping(Steps(self.node.check, step)):
                self.agent.put(document(self.generation, *asked), self.node.at)
        self.restarted()

    @rule()
    def restarted(self) -> None:
        self.node.kill(self.agent)
        self.node.check()
        with structlog.testing.capture_logs():
            self.agent = self.node.start()
            self.node.tick(self.agent)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 100.0, 3600.0, -3600.0]))
    def time_passes(self, seconds: float) -> None:
        with structlog.testing.capture_logs():
            self.node.tick(self.agent, seconds)

    @rule(name=st.sampled_from(NAMES), share=st.floats(0, 1), part=st.floats(0, 1))
    def works(self, name: str, share: float, part: float) -> None:
        """Use what the limiter lets through: compute as it likes, memory up to the limit that stands."""
        free = TOTAL - sum(held for other, (_, held) in self.node.uses.items() if other != name)
        most = min(free, self.node.limits().get(name, free))
        self.node.uses[name] = (share, int(most * part))

    @rule()
    def driver_fails_once(self) -> None:
        self.node.unreadable = True
        try:
            self.node.tick(self.agent)
        except SourceError:
            pass
        finally:
            self.node.unreadable = False

    @precondition(lambda self: self.node.limits())
    @rule(name=st.sampled_from(NAMES), gib=st.integers(0, 200))
    def tenant_writes(self, name: str, gib: int) -> None:
        """Write over an own limit; what it wins by that lasts until the next tick and is nobody else's loss."""
        with open_state(self.node.file(name)) as file:
            slots_of(file)[GPU.lower()].put_u64(MEM_LIMIT, gib * GIB)
        with structlog.testing.capture_logs():
            self.node.tick(self.agent)

    @invariant()
    def the_device_is_never_promised_twice(self) -> None:
        if hasattr(self, "node"):
            self.node.check()

    @invariant()
    def what_is_called_applied_is_what_stands(self) -> None:
        if not hasattr(self, "node"):
            return
        limits = self.node.limits()
        for worker in self.agent.state().workers:
            for device in worker.devices:
                if device.applied and device.desired is not None:
                    assert device.observed.vram_limit_bytes == limits[worker.pod]


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=20, stateful_step_count=15, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
