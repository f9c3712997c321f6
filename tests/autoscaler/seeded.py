"""Services with a known use, as the series that their agents would have left: for a history in memory or a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from autoscaler.contract import metrics
from autoscaler.model.resources import GIB
from autoscaler.read.inventory import Answers
from autoscaler.read.memory import MemoryHistory

DEVICE_TFLOPS = 100.0
DEVICE_BYTES = 80 * GIB
SCRAPE = 60.0


@dataclass(frozen=True)
class Service:
    """Use per worker in TFLOPs and bytes, by minutes before the end (negative); clipped at its compute limit."""

    name: str
    use: Callable[[float], float] | float = 5.0
    vram: Callable[[float], float] | float = 4.0 * GIB
    tflops: tuple[float, float] | None = (10.0, 20.0)
    vram_figures: tuple[float, float] | None = (8.0 * GIB, 16.0 * GIB)
    qos: str = "medium"
    namespace: str = "team-a"
    workers: int = 1
    minutes: float = 2 * 24 * 60
    tflops_known: bool = True
    ooms: Sequence[float] = field(default=())

    @property
    def labels(self) -> list[dict[str, str]]:
        """Labels of each worker's series; each has a GPU of its own."""
        return [
            {
                "namespace": self.namespace,
                "workload": self.name,
                "pod": f"{self.name}-{number}",
                "container": "main",
                "node": "node-a",
                "gpu_uuid": f"GPU-{self.namespace}-{self.name}-{number}",
            }
            for number in range(self.workers)
        ]

    def at(self, minute: float) -> tuple[float, float]:
        use = self.use(minute) if callable(self.use) else self.use
        vram = self.vram(minute) if callable(self.vram) else self.vram
        return (use if self.tflops is None else min(use, self.tflops[1])), vram


Sample = tuple[str, dict[str, str], float]


def facts(services: Sequence[Service]) -> Iterator[Sample]:
    """Yield what does not change: figures in force, service level, devices."""
    for service in services:
        for labels in service.labels:
            info = {"qos": service.qos, "backend": "simulated", "gpu_model": "H100", "pod_uid": f"uid-{labels['pod']}"}
            yield metrics.WORKER_INFO.name, labels | info, 1.0
            if service.tflops is not None:
                yield metrics.WORKER_TFLOPS_REQUEST.name, labels, service.tflops[0]
                yield metrics.WORKER_TFLOPS_LIMIT.name, labels, service.tflops[1]
                yield metrics.WORKER_EFFECTIVE_TFLOPS_LIMIT.name, labels, service.tflops[1]
            if service.vram_figures is not None:
                yield metrics.WORKER_VRAM_REQUEST.name, labels, service.vram_figures[0]
                yield metrics.WORKER_VRAM_LIMIT.name, labels, service.vram_figures[1]
                yield metrics.WORKER_EFFECTIVE_VRAM_LIMIT.name, labels, service.vram_figures[1]
            device = {"node": labels["node"], "gpu_uuid": labels["gpu_uuid"]}
            if service.tflops_known:
                yield metrics.DEVICE_COMPUTE_CAPACITY.name, device, DEVICE_TFLOPS
            yield metrics.DEVICE_VRAM_TOTAL.name, device, DEVICE_BYTES


def answers(services: Sequence[Service]) -> Answers:
    """Return what instant queries would answer now."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in facts(services):
        found.setdefault(name, []).append((labels, value))
    for service in services:
        for labels in service.labels:
            found.setdefault(metrics.WORKER_VRAM_USED.name, []).append((labels, service.at(0.0)[1]))
    return found


def scrapes(services: Sequence[Service], end: float) -> Iterator[tuple[float, list[Sample]]]:
    """Yield each scrape up to and with `end`; counters run from where the service begins."""
    known = list(facts(services))
    longest = max(service.minutes for service in services)
    seconds = dict.fromkeys(services_by_name(services), 0.0)
    throttled, died = seconds.copy(), seconds.copy()
    for step in range(int(longest * 60 / SCRAPE) + 1):
        minute = step * SCRAPE / 60 - longest
        samples = [one for one in known if _lives(services, one[1], minute)]
        for service in services:
            if minute < -service.minutes:
                continue
            use, vram = service.at(minute)
            key = f"{service.namespace}/{service.name}"
            seconds[key] += use / DEVICE_TFLOPS * SCRAPE
            is_clipped = service.tflops is not None and use >= service.tflops[1]
            throttled[key] += 0.5 * SCRAPE if is_clipped else 0.0
            died[key] += sum(1 for at in service.ooms if minute - SCRAPE / 60 < at <= minute)
            for labels in service.labels:
                samples.append((metrics.WORKER_COMPUTE_SECONDS.name, labels, seconds[key]))
                samples.append((metrics.WORKER_THROTTLED_SECONDS.name, labels, throttled[key]))
                samples.append((metrics.WORKER_VRAM_PEAK.name, labels, vram))
                samples.append((metrics.WORKER_VRAM_USED.name, labels, vram))
                if service.ooms:
                    samples.append((metrics.WORKER_OOM.name, labels | {"source": "exit"}, died[key]))
        yield end + 60 * minute, samples


def services_by_name(services: Sequence[Service]) -> list[str]:
    return [f"{service.namespace}/{service.name}" for service in services]


def _lives(services: Sequence[Service], labels: dict[str, str], minute: float) -> bool:
    """Devices are there from the start, workers since theirs."""
    return "workload" not in labels or any(
        (one.namespace, one.name) == (labels["namespace"], labels["workload"]) and minute >= -one.minutes
        for one in services
    )


def exposed(sample: Sample) -> str:
    name, labels, value = sample
    told = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"{name}{{{told}}} {value!r}"


def in_memory(services: Sequence[Service], end: float) -> MemoryHistory:
    """Return a history that holds what these services left."""
    history = MemoryHistory(SCRAPE, 1e9)
    for at, samples in scrapes(services, end):
        history.ingest(at, "\n".join(map(exposed, samples)) + "\n")
    return history


def openmetrics(services: Sequence[Service], end: float) -> str:
    """Return the same as OpenMetrics text with timestamps, metric by metric, as promtool takes it."""
    by_series: dict[str, list[str]] = {}
    for at, samples in scrapes(services, end):
        for sample in samples:
            series, _, value = exposed(sample).rpartition(" ")
            by_series.setdefault(series, []).append(f"{series} {value} {at:.0f}")
    return "\n".join(line for series in sorted(by_series) for line in by_series[series]) + "\n# EOF\n"
