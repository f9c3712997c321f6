"""What a run amounts to: the truth of both runs, every workload as the cluster shows it, promises kept; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from autoscaler.demo.processes import Truth
from autoscaler.demo.surge import Surge
from autoscaler.model.resources import GIB
from autoscaler.model.workload import Manifest

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Totals:
    """One run over all workers: TFLOPs and GiB times hours, shares of 0..1, counts.

    `unserved_ratio` is the share of the compute demand that was not served: throttled, contended for, or down.
    """

    reserved_tflops_hours: float
    used_tflops_hours: float
    reserved_vram_gib_hours: float
    unserved_ratio: float
    throttled_hours: float
    down_hours: float
    ooms: int


@dataclass(frozen=True, slots=True)
class Shown:
    """One workload at the end, as its status says; amounts by side and resource, as texts."""

    name: str
    qos: str
    auto: str
    current: Mapping[str, Any]
    recommended: Mapping[str, Any]
    replicas: int | None
    recommended_replicas: int | None
    applied: str
    effect: str | None
    status: str
    reason: Mapping[str, str]
    message: str


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The whole run. `static` held the owners' figures all the time, with the same demand; `changes` by workload."""

    seed: int
    duration_seconds: float
    static: Totals
    autoscaled: Totals
    workloads: tuple[Shown, ...]
    changes: Mapping[str, int]
    surge: Surge

    @property
    def changes_per_workload_day(self) -> float:
        """Return how often a workload's figures moved on an average day."""
        return sum(self.changes.values()) / len(self.workloads) / (self.duration_seconds / DAY)

    def broken_promises(self) -> Iterator[str]:
        """Yield what the demo promised and did not show, a sentence each."""
        if not self.surge.recovered:
            yield self.surge.sentence()
        for workload in self.workloads:
            done, _, workers = workload.applied.partition("/")
            if done != workers or not workload.applied:
                yield f"{workload.name}: {workload.applied or 'none'} of its workers acknowledged"

    def as_data(self) -> dict[str, Any]:
        """Return everything as JSON types; equal runs give equal data."""
        return {
            "seed": self.seed,
            "duration_seconds": self.duration_seconds,
            "workloads": [{**asdict(one), "changes": self.changes.get(one.name, 0)} for one in self.workloads],
            "surge": {**asdict(self.surge), "periods": self.surge.periods, "recovered": self.surge.recovered},
            "summary": {
                "static": asdict(self.static),
                "autoscaled": asdict(self.autoscaled),
                "changes": sum(self.changes.values()),
                "changes_per_workload_day": self.changes_per_workload_day,
            },
            "broken_promises": list(self.broken_promises()),
        }


def totals(truths: Iterable[Truth]) -> Totals:
    """Add up what a run's simulations recorded."""
    workers = tuple(truths)
    demand = sum(one.demand_tflops_seconds for one in workers)
    used = sum(one.used_tflops_seconds for one in workers)
    return Totals(
        reserved_tflops_hours=sum(one.request_tflops_seconds for one in workers) / HOUR,
        used_tflops_hours=used / HOUR,
        reserved_vram_gib_hours=sum(one.request_vram_byte_seconds for one in workers) / HOUR / GIB,
        unserved_ratio=1.0 - used / demand,
        throttled_hours=sum(one.throttled_seconds for one in workers) / HOUR,
        down_hours=sum(one.down_seconds for one in workers) / HOUR,
        ooms=sum(one.ooms for one in workers),
    )


def shown(workloads: Iterable[Manifest]) -> tuple[Shown, ...]:
    """Return every TensorFusionWorkload as its status says, by name."""
    return tuple(_shown(one) for one in sorted(workloads, key=lambda one: str(one["metadata"]["name"])))


def _shown(manifest: Manifest) -> Shown:
    status = manifest.get("status") or {}
    autoscaling = status.get("autoscaling") or {}
    display = autoscaling.get("display") or {}
    figures = {name: autoscaling[name] for name in ("tflops", "vram", "replicas") if name in autoscaling}
    return Shown(
        name=manifest["metadata"]["name"],
        qos=display.get("qos", ""),
        auto=display.get("auto", ""),
        current=autoscaling.get("current") or {},
        recommended=status.get("recommendation") or {},
        replicas=(manifest.get("spec") or {}).get("replicas"),
        recommended_replicas=status.get("recommendedReplicas"),
        applied=autoscaling.get("applied", ""),
        effect=autoscaling.get("effect"),
        status=display.get("status", ""),
        reason={name: figure.get("reason", "") for name, figure in figures.items()},
        message=display.get("message", ""),
    )
