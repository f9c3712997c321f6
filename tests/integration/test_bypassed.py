"""A worker that goes around its limiter, on real parts: it is shown, and neither before nor after that is it paid for it.

The pods of an owner that starts its own workers (`no-standalone-worker-mode`) can do so. As in `test_loop` only the GPU
is a stand-in; the worker's process takes five times its limit, then memory beyond its limit, and then obeys again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.nvml_standin import GIB
from tests.integration import worlds
from tests.integration.manifests import LIMIT_TFLOPS, PREFIX
from tests.integration.prometheus_server import require_prometheus
from tests.integration.recorded import LIMIT_METRIC
from tests.integration.story import Story, staged

pytestmark = pytest.mark.integration
BIN_SECONDS = 10.0
LIMIT_BYTES = 12 * GIB
QUIET_TFLOPS, QUIET_BYTES = 10.0, 6 * GIB
METRICS = "tensor_fusion_worker_"


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    require_prometheus()
    with worlds.folder_world(tmp_path) as world, staged(world, tmp_path, BIN_SECONDS=BIN_SECONDS) as stage:
        for key in ("is-local-gpu", "no-standalone-worker-mode"):
            world.annotate_template(PREFIX + key, "true")
        try:
            yield stage
        except Exception as error:
            error.add_note(stage.tails())
            raise


def go(story: Story, tflops: float, vram_bytes: int, *, obeys: bool) -> None:
    worker = story.worker
    worker.demand_tflops, worker.demand_vram_bytes, worker.obeys = tflops, vram_bytes, obeys


def read_bins(story: Story, count: int) -> None:
    """Wait until so many more bins were read, and what came of them was told."""
    until = story.passes()[-1].end + count * BIN_SECONDS
    story.until(f"{count} more bins are read", lambda: story.passes()[-1].end >= until)
    story.await_passes(2)


def highest(story: Story) -> tuple[float, int]:
    """Return the highest limits that the worker ever found in force."""
    found = [one for one in story.worker.seen if one.tflops_limit is not None and one.vram_limit_bytes is not None]
    return max(one.tflops_limit or 0.0 for one in found), max(one.vram_limit_bytes or 0 for one in found)


def goes_beyond(story: Story, metric: str) -> Callable[[], bool]:
    return lambda: (story.series(METRICS + metric) or 0.0) > 0


def test_five_times_the_limit_is_shown_and_earns_nothing_while_a_worker_at_its_limit_is_probed_upward(story):
    go(story, QUIET_TFLOPS, QUIET_BYTES, obeys=True)
    story.until("the limits of birth are in force", lambda: story.limit_tflops() == LIMIT_TFLOPS)
    story.until("Prometheus has the worker's series", lambda: story.series(LIMIT_METRIC) == LIMIT_TFLOPS)
    story.write_pause("down")
    story.controller.start()
    story.until("history is read", story.passes)
    read_bins(story, 2)
    assert story.condition("ConfigValid")[0] == "True"
    assert highest(story) == (LIMIT_TFLOPS, LIMIT_BYTES)

    go(story, 5 * LIMIT_TFLOPS, QUIET_BYTES, obeys=False)
    story.until("what is beyond is told", goes_beyond(story, "compute_beyond_limit_seconds_total"))
    story.until("it is shown", lambda: story.condition("EnforcementInSync") == ("True", "LimitBypassed"))
    read_bins(story, 3)
    assert highest(story) == (LIMIT_TFLOPS, LIMIT_BYTES)
    assert story.series(METRICS + "compute_utilization_ratio") == 1.0
    assert story.series(METRICS + "limit_bypassed") == 1.0

    go(story, QUIET_TFLOPS, 20 * GIB, obeys=False)
    story.until("so is memory", goes_beyond(story, "vram_beyond_limit_peak_bytes"))
    read_bins(story, 3)
    assert story.condition("EnforcementInSync") == ("True", "LimitBypassed")
    assert highest(story) == (LIMIT_TFLOPS, LIMIT_BYTES)
    assert story.series(METRICS + "vram_peak_bytes") == 20 * GIB

    go(story, 3 * LIMIT_TFLOPS, QUIET_BYTES, obeys=True)
    story.until("a worker held back at its limit gets a higher one", lambda: story.limit_tflops() >= 2 * LIMIT_TFLOPS)
