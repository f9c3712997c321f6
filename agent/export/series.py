"""A tick's report as samples of the metric table: pure, one function per table (workers, devices, the agent itself).

A figure that is not known has no sample; nothing is ever filled with 0. Neighbour: `agent.export.exporter` renders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from agent.export.totals import Total, Totals, key_of
from agent.gpus import GpuTable
from agent.model.report import Durations, TickReport
from agent.model.samples import DeviceSample, WorkerKey, WorkerUse
from autoscaler.contract import metrics as m
from autoscaler.contract.quota import DeviceStatus

Labels: TypeAlias = tuple[str, ...]
Sample: TypeAlias = tuple[m.Metric, Labels, float | Durations]


@dataclass(frozen=True, slots=True)
class _Device:
    """A healthy device with its capacity: dense FP16 TFLOPs times its MIG fraction, None for an unknown model."""

    sample: DeviceSample
    tflops: float | None


def worker_and_device_samples(report: TickReport, totals: Totals, gpus: GpuTable) -> Iterator[Sample]:
    """Yield the samples of every worker and device that is alive and well in this tick."""
    devices = {
        device.uuid: _Device(device, _capacity(device, gpus)) for device in report.sample.devices if device.healthy
    }
    for device in devices.values():
        yield from _device_samples(report, device)
    statuses = _statuses(report)
    ooms = _ooms(report)
    named: set[Labels] = set()
    for use in report.attribution.uses:
        labels = _worker_labels(use, report.node)
        # A pod and its successor of the same name overlap for a moment: one label set must have one value.
        if use.uuid not in devices or labels in named:
            continue
        named.add(labels)
        key = key_of(use)
        status = statuses.get(key) or statuses.get((use.worker.pod_uid, "", use.uuid))
        device = devices[use.uuid]
        facts = (use.worker.qos.value, report.backends.get(key, ""), device.sample.model, use.worker.pod_uid)
        yield m.WORKER_INFO, labels + facts, 1.0
        for metric, value in (*_use_figures(report, use, device, totals.of(key)), *_quota_figures(report, use, status)):
            if value is not None and math.isfinite(value):
                yield metric, labels, float(value)
        yield from ((m.WORKER_OOM, (*labels, source), float(count)) for source, count in ooms.get(key, ()))


def agent_samples(report: TickReport) -> Iterator[Sample]:
    """Yield what the agent says about itself."""
    node, stats = (report.node,), report.stats
    yield (m.AGENT_SAMPLE_SECONDS, node, stats.sample)
    yield (m.AGENT_APPLY_SECONDS, node, stats.apply)
    yield (m.AGENT_TICK_OVERRUN, node, float(stats.tick_overruns))
    yield from ((m.AGENT_NVML_CALL_SECONDS, (*node, call), spent) for call, spent in stats.source.calls.items())
    yield from ((m.AGENT_NVML_ERRORS, (*node, *error), float(n)) for error, n in stats.source.errors.items())
    yield from ((m.AGENT_SAMPLES_DROPPED, (*node, reason), float(n)) for reason, n in stats.source.dropped.items())
    yield from ((m.AGENT_APPLY, (*node, *outcome), float(n)) for outcome, n in stats.applies.items())
    if report.last_contact_at is not None:
        yield (m.AGENT_CONTACT, node, max(0.0, report.at - report.last_contact_at))


_Figures: TypeAlias = Iterable[tuple[m.Metric, float | None]]


def _device_samples(report: TickReport, device: _Device) -> Iterator[Sample]:
    sample, labels = device.sample, (report.node, device.sample.uuid)
    figures: list[tuple[m.Metric, float | None]] = [
        (m.DEVICE_COMPUTE_UTILIZATION, sample.compute_ratio),
        (m.DEVICE_COMPUTE_CAPACITY, device.tflops),
        (m.DEVICE_VRAM_USED, sample.vram_used_bytes),
        (m.DEVICE_VRAM_TOTAL, sample.vram_total_bytes),
    ]
    for rest in report.attribution.unattributed:
        if rest.uuid == sample.uuid:
            figures.append((m.DEVICE_UNATTRIBUTED_COMPUTE, rest.compute_ratio))
            figures.append((m.DEVICE_UNATTRIBUTED_VRAM, rest.vram_bytes))
    yield m.DEVICE_INFO, (*labels, sample.model, report.sample.driver_version), 1.0
    for metric, value in figures:
        if value is not None and math.isfinite(value):
            yield metric, labels, float(value)


def _use_figures(report: TickReport, use: WorkerUse, device: _Device, total: Total | None) -> _Figures:
    used = None if device.tflops is None or use.compute_ratio is None else use.compute_ratio * device.tflops
    figures = (
        (m.WORKER_COMPUTE_UTILIZATION, use.compute_ratio),
        (m.WORKER_COMPUTE_USED, used),
        (m.WORKER_VRAM_USED, use.vram_bytes),
        (m.WORKER_SAMPLE_AGE, max(0.0, report.at - use.sampled_at)),
    )
    if total is None:
        return figures
    judged = key_of(use) in report.bypassed
    return (
        *figures,
        (m.WORKER_COMPUTE_SECONDS, total.compute_seconds),
        (m.WORKER_THROTTLED_SECONDS, total.throttled_seconds),
        (m.WORKER_VRAM_PEAK, total.vram_peak_bytes),
        (m.WORKER_COMPUTE_BEYOND_LIMIT, total.beyond_seconds if judged else None),
        (m.WORKER_VRAM_BEYOND_LIMIT, total.beyond_peak_bytes if judged else None),
    )


def _quota_figures(report: TickReport, use: WorkerUse, status: DeviceStatus | None) -> _Figures:
    desired = status.desired if status is not None else None
    quota = desired or use.worker.born
    if quota is not None:
        yield m.WORKER_TFLOPS_REQUEST, quota.tflops_request
        yield m.WORKER_TFLOPS_LIMIT, quota.tflops_limit
        yield m.WORKER_VRAM_REQUEST, quota.vram_request_bytes
        yield m.WORKER_VRAM_LIMIT, quota.vram_limit_bytes
    if status is not None:
        yield m.WORKER_EFFECTIVE_TFLOPS_LIMIT, status.observed.tflops_limit
        yield m.WORKER_EFFECTIVE_VRAM_LIMIT, status.observed.vram_limit_bytes
    if desired is not None:
        yield m.WORKER_QUOTA_GENERATION, report.generation
    yield m.WORKER_QUOTA_APPLIED_GENERATION, report.applied.get(key_of(use))
    yield m.WORKER_BURST_CREDIT, report.credits.get(key_of(use))
    yield m.WORKER_LIMIT_BYPASSED, report.bypassed.get(key_of(use))


def _statuses(report: TickReport) -> Mapping[WorkerKey, DeviceStatus]:
    return {(w.pod_uid, w.container, device.uuid): device for w in report.quotas for device in w.devices}


def _ooms(report: TickReport) -> Mapping[WorkerKey, list[tuple[str, int]]]:
    by_key: dict[WorkerKey, list[tuple[str, int]]] = {}
    for (pod_uid, container, uuid, source), count in report.ooms.items():
        by_key.setdefault((pod_uid, container, uuid), []).append((source, count))
    return by_key


def _worker_labels(use: WorkerUse, node: str) -> Labels:
    worker = use.worker
    return _same(worker.namespace, worker.workload, worker.pod, worker.container, node, use.uuid)


@lru_cache(maxsize=8192)
def _same(*labels: str) -> Labels:
    """Return the labels, the same object each time: it is then compared at once with what was shown before."""
    return labels


def _capacity(device: DeviceSample, gpus: GpuTable) -> float | None:
    gpu = gpus.lookup(device.model)
    return None if gpu is None else gpu.tflops * device.mig_fraction
