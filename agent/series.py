"""A tick's report as samples of the metric table: pure, one function per table (workers, devices, the agent itself).

A figure that is not known has no sample; nothing is ever filled with 0. Neighbour: `agent.exporter` renders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent.gpus import GpuTable
from agent.report import Durations, TickReport, WorkerKey
from agent.samples import DeviceSample, WorkerUse
from agent.totals import Totals, key_of
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
        yield from _known(_device_samples(report, device))
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
        yield from _known(_use_samples(report, use, devices[use.uuid], totals))
        yield from _known(_quota_samples(report, use, status))
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


_Maybe: TypeAlias = Iterator[tuple[m.Metric, Labels, float | None]]


def _known(samples: _Maybe) -> Iterator[Sample]:
    for metric, labels, value in samples:
        if value is not None and math.isfinite(value):
            yield metric, labels, float(value)


def _device_samples(report: TickReport, device: _Device) -> _Maybe:
    sample, labels = device.sample, (report.node, device.sample.uuid)
    yield m.DEVICE_COMPUTE_UTILIZATION, labels, sample.compute_ratio
    yield m.DEVICE_COMPUTE_CAPACITY, labels, device.tflops
    yield m.DEVICE_VRAM_USED, labels, sample.vram_used_bytes
    yield m.DEVICE_VRAM_TOTAL, labels, sample.vram_total_bytes
    yield m.DEVICE_INFO, (*labels, sample.model, report.sample.driver_version), 1
    for rest in report.attribution.unattributed:
        if rest.uuid == sample.uuid:
            yield m.DEVICE_UNATTRIBUTED_COMPUTE, labels, rest.compute_ratio
            yield m.DEVICE_UNATTRIBUTED_VRAM, labels, rest.vram_bytes


def _use_samples(report: TickReport, use: WorkerUse, device: _Device, totals: Totals) -> _Maybe:
    labels, key, total = _worker_labels(use, report.node), key_of(use), totals.of(key_of(use))
    used = None if device.tflops is None or use.compute_ratio is None else use.compute_ratio * device.tflops
    yield m.WORKER_COMPUTE_UTILIZATION, labels, use.compute_ratio
    yield m.WORKER_COMPUTE_USED, labels, used
    yield m.WORKER_VRAM_USED, labels, use.vram_bytes
    yield m.WORKER_SAMPLE_AGE, labels, max(0.0, report.at - use.sampled_at)
    facts = (use.worker.qos.value, report.backends.get(key, ""), device.sample.model, use.worker.pod_uid)
    yield m.WORKER_INFO, labels + facts, 1
    if total is not None:
        yield m.WORKER_COMPUTE_SECONDS, labels, total.compute_seconds
        yield m.WORKER_THROTTLED_SECONDS, labels, total.throttled_seconds
        yield m.WORKER_VRAM_PEAK, labels, total.vram_peak_bytes


def _quota_samples(report: TickReport, use: WorkerUse, status: DeviceStatus | None) -> _Maybe:
    labels = _worker_labels(use, report.node)
    quota = status.desired if status is not None and status.desired is not None else use.worker.born
    if quota is not None:
        yield m.WORKER_TFLOPS_REQUEST, labels, quota.tflops_request
        yield m.WORKER_TFLOPS_LIMIT, labels, quota.tflops_limit
        yield m.WORKER_VRAM_REQUEST, labels, quota.vram_request_bytes
        yield m.WORKER_VRAM_LIMIT, labels, quota.vram_limit_bytes
    if status is not None:
        yield m.WORKER_EFFECTIVE_TFLOPS_LIMIT, labels, status.observed.tflops_limit
        yield m.WORKER_EFFECTIVE_VRAM_LIMIT, labels, status.observed.vram_limit_bytes
        if status.desired is not None:
            yield m.WORKER_QUOTA_GENERATION, labels, report.generation
    yield m.WORKER_QUOTA_APPLIED_GENERATION, labels, report.applied.get(key_of(use))


def _statuses(report: TickReport) -> Mapping[WorkerKey, DeviceStatus]:
    return {(w.pod_uid, w.container, device.uuid): device for w in report.quotas for device in w.devices}


def _ooms(report: TickReport) -> Mapping[WorkerKey, list[tuple[str, int]]]:
    by_key: dict[WorkerKey, list[tuple[str, int]]] = {}
    for (pod_uid, container, uuid, source), count in report.ooms.items():
        by_key.setdefault((pod_uid, container, uuid), []).append((source, count))
    return by_key


def _worker_labels(use: WorkerUse, node: str) -> Labels:
    worker = use.worker
    return (worker.namespace, worker.workload, worker.pod, worker.container, node, use.uuid)


def _capacity(device: DeviceSample, gpus: GpuTable) -> float | None:
    gpu = gpus.lookup(device.model)
    return None if gpu is None else gpu.tflops * device.mig_fraction
