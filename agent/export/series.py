"""A tick's report as columns of the metric table: pure; of workers, of devices, and of the agent itself.

A figure that is not known has no row; nothing is ever filled with 0. Neighbour: `agent.export.exporter` renders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import Final, NamedTuple, TypeAlias, cast

from agent.export.totals import Total, Totals, key_of
from agent.gpus import GpuTable
from agent.model.report import Durations, TickReport
from agent.model.samples import DeviceSample, Unattributed, WorkerKey, WorkerUse
from autoscaler.contract import metrics as m
from autoscaler.contract.quota import DeviceQuota, Observed

Labels: TypeAlias = tuple[str, ...]


class Column(NamedTuple):
    """The rows of one family: their labels, and as many values."""

    labels: Sequence[Labels]
    values: Sequence[float | Durations]


Table: TypeAlias = dict[str, Column]
"""The families that have rows, by name."""

_UNSEEN: Final = Observed()


class _Workers(NamedTuple):
    """The workers on their devices, a column each of what is known of them, in one order.

    `quotas` are what was asked for or, where nothing was, what the worker was born with; `tflops` are the devices'.
    """

    labels: Sequence[Labels]
    keys: Sequence[WorkerKey]
    uses: Sequence[WorkerUse]
    tflops: Sequence[float | None]
    totals: Sequence[Total]
    desired: Sequence[DeviceQuota | None]
    quotas: Sequence[DeviceQuota | None]
    observed: Sequence[Observed]

    @property
    def with_quota(self) -> tuple[Sequence[Labels], Sequence[DeviceQuota]]:
        """Those of them that have a quota: labels and quotas."""
        pairs = [(one, quota) for one, quota in zip(self.labels, self.quotas, strict=True) if quota is not None]
        return [one for one, _ in pairs], [quota for _, quota in pairs]


def worker_and_device_columns(report: TickReport, totals: Totals, gpus: GpuTable) -> Table:
    """Return what is to be shown of every worker and device that is alive and well in this tick."""
    devices = {one.uuid: one for one in report.sample.devices if one.healthy}
    tflops = {uuid: _capacity(device, gpus) for uuid, device in devices.items()}
    uses: dict[Labels, WorkerUse] = {}
    for use in report.attribution.uses:
        if use.uuid in devices:
            # A pod and its successor of the same name overlap for a moment: one label set must have one value.
            uses.setdefault(_labels_of(use, report.node), use)
    workers = _workers(report, uses, tflops, totals)
    models = [devices[use.uuid].model for use in workers.uses]
    columns = {
        **_device_columns(report, tuple(devices.values()), tuple(tflops.values())),
        m.WORKER_INFO: _info(workers.labels, *_facts(report, workers, models)),
        **_use_columns(report, workers),
        **_quota_columns(report, workers),
        m.WORKER_OOM: _deaths(report, workers),
    }
    return {metric.name: column for metric, column in columns.items() if column.labels}


def agent_columns(report: TickReport) -> Table:
    """Return what the agent says about itself."""
    node, stats = (report.node,), report.stats
    families: dict[m.Metric, Mapping[Labels, float | Durations]] = {
        m.AGENT_SAMPLE_SECONDS: {(): stats.sample},
        m.AGENT_APPLY_SECONDS: {(): stats.apply},
        m.AGENT_TICK_OVERRUN: {(): stats.tick_overruns},
        m.AGENT_NVML_CALL_SECONDS: {(call,): spent for call, spent in stats.source.calls.items()},
        m.AGENT_NVML_ERRORS: {tuple(error): count for error, count in stats.source.errors.items()},
        m.AGENT_SAMPLES_DROPPED: {(reason,): count for reason, count in stats.source.dropped.items()},
        m.AGENT_APPLY: {tuple(outcome): count for outcome, count in stats.applies.items()},
    }
    if report.last_contact_at is not None:
        families[m.AGENT_CONTACT] = {(): max(0.0, report.at - report.last_contact_at)}
    return {
        metric.name: Column([node + labels for labels in rows], list(rows.values()))
        for metric, rows in families.items()
        if rows
    }


_Columns: TypeAlias = Mapping[m.Metric, Column]


def _device_columns(report: TickReport, devices: Sequence[DeviceSample], tflops: Sequence[float | None]) -> _Columns:
    labels = [_same(report.node, device.uuid) for device in devices]
    by_uuid = {one.uuid: one for one in report.attribution.unattributed}
    rest = [by_uuid.get(device.uuid) or Unattributed(device.uuid, None, None) for device in devices]
    driver = report.sample.driver_version
    figures: Mapping[m.Metric, Sequence[float | None]] = {
        m.DEVICE_COMPUTE_UTILIZATION: [device.compute_ratio for device in devices],
        m.DEVICE_COMPUTE_CAPACITY: tflops,
        m.DEVICE_VRAM_USED: [device.vram_used_bytes for device in devices],
        m.DEVICE_VRAM_TOTAL: [device.vram_total_bytes for device in devices],
        m.DEVICE_UNATTRIBUTED_COMPUTE: [one.compute_ratio for one in rest],
        m.DEVICE_UNATTRIBUTED_VRAM: [one.vram_bytes for one in rest],
    }
    info = _info(labels, [device.model for device in devices], [driver] * len(devices))
    return {m.DEVICE_INFO: info, **_known(labels, figures)}


def _workers(
    report: TickReport, uses: Mapping[Labels, WorkerUse], tflops: Mapping[str, float | None], totals: Totals
) -> _Workers:
    keys = [key_of(use) for use in uses.values()]
    # A document may name a pod without its container.
    names = [key if key in report.observed else (key[0], "", key[2]) for key in keys]
    desired = [report.desired.get(name) for name in names]
    return _Workers(
        list(uses),
        keys,
        list(uses.values()),
        [tflops[key[2]] for key in keys],
        [totals.of(key) or Total(report.at) for key in keys],
        desired,
        [quota or use.worker.born for quota, use in zip(desired, uses.values(), strict=True)],
        [report.observed.get(name, _UNSEEN) for name in names],
    )


def _facts(report: TickReport, workers: _Workers, models: Sequence[str]) -> tuple[Sequence[str], ...]:
    return (
        [use.worker.qos.value for use in workers.uses],
        [report.backends.get(key, "") for key in workers.keys],
        models,
        [use.worker.pod_uid for use in workers.uses],
    )


def _use_columns(report: TickReport, workers: _Workers) -> _Columns:
    ratios = [use.compute_ratio for use in workers.uses]
    judged = [
        total if key in report.bypassed else None for key, total in zip(workers.keys, workers.totals, strict=True)
    ]
    return _known(
        workers.labels,
        {
            m.WORKER_COMPUTE_UTILIZATION: ratios,
            m.WORKER_COMPUTE_USED: [
                None if ratio is None or tflops is None else ratio * tflops
                for ratio, tflops in zip(ratios, workers.tflops, strict=True)
            ],
            m.WORKER_VRAM_USED: [use.vram_bytes for use in workers.uses],
            m.WORKER_SAMPLE_AGE: [max(0.0, report.at - use.sampled_at) for use in workers.uses],
            m.WORKER_COMPUTE_SECONDS: [total.compute_seconds for total in workers.totals],
            m.WORKER_THROTTLED_SECONDS: [total.throttled_seconds for total in workers.totals],
            m.WORKER_VRAM_PEAK: [total.vram_peak_bytes for total in workers.totals],
            m.WORKER_COMPUTE_BEYOND_LIMIT: [total.beyond_seconds if total is not None else None for total in judged],
            m.WORKER_VRAM_BEYOND_LIMIT: [total.beyond_peak_bytes if total is not None else None for total in judged],
        },
    )


def _quota_columns(report: TickReport, workers: _Workers) -> _Columns:
    labels, quotas = workers.with_quota
    asked: Mapping[m.Metric, Sequence[float]] = {
        m.WORKER_TFLOPS_REQUEST: [quota.tflops_request for quota in quotas],
        m.WORKER_TFLOPS_LIMIT: [quota.tflops_limit for quota in quotas],
        m.WORKER_VRAM_REQUEST: [quota.vram_request_bytes for quota in quotas],
        m.WORKER_VRAM_LIMIT: [quota.vram_limit_bytes for quota in quotas],
    }
    newest = report.generation
    seen: Mapping[m.Metric, Sequence[float | None]] = {
        m.WORKER_EFFECTIVE_TFLOPS_LIMIT: [seen.tflops_limit for seen in workers.observed],
        m.WORKER_EFFECTIVE_VRAM_LIMIT: [seen.vram_limit_bytes for seen in workers.observed],
        m.WORKER_QUOTA_GENERATION: [newest if quota is not None else None for quota in workers.desired],
        m.WORKER_QUOTA_APPLIED_GENERATION: list(map(report.applied.get, workers.keys)),
        m.WORKER_BURST_CREDIT: list(map(report.credits.get, workers.keys)),
        m.WORKER_LIMIT_BYPASSED: list(map(report.bypassed.get, workers.keys)),
    }
    return {**_known(labels, asked), **_known(workers.labels, seen)}


def _deaths(report: TickReport, workers: _Workers) -> Column:
    by_key: dict[WorkerKey, list[tuple[str, int]]] = {}
    for (pod_uid, container, uuid, source), count in report.ooms.items():
        by_key.setdefault((pod_uid, container, uuid), []).append((source, count))
    rows = [
        (_same(*labels, source), count)
        for labels, key in zip(workers.labels, workers.keys, strict=True)
        for source, count in by_key.get(key, ())
    ]
    return Column([labels for labels, _ in rows], [count for _, count in rows])


def _info(labels: Sequence[Labels], *facts: Sequence[str]) -> Column:
    return Column([_same(*one, *more) for one, *more in zip(labels, *facts, strict=True)], [1.0] * len(labels))


def _known(labels: Sequence[Labels], figures: Mapping[m.Metric, Sequence[float | None]]) -> _Columns:
    """Return a column for each figure, with the rows of which it is known."""
    return {metric: _column(labels, values) for metric, values in figures.items()}


def _column(labels: Sequence[Labels], values: Sequence[float | None]) -> Column:
    # Mostly all are known; one that is not finite makes the sum so.
    if None not in values and isfinite(sum(cast("Sequence[float]", values))):
        return Column(labels, cast("Sequence[float]", values))
    known = [(one, value) for one, value in zip(labels, values, strict=True) if value is not None and isfinite(value)]
    return Column([one for one, _ in known], [value for _, value in known])


def _labels_of(use: WorkerUse, node: str) -> Labels:
    worker = use.worker
    return _same(worker.namespace, worker.workload, worker.pod, worker.container, node, use.uuid)


@lru_cache(maxsize=8192)
def _same(*labels: str) -> Labels:
    """Return the labels, the same object each time: it is then compared at once with what was shown before."""
    return labels


def _capacity(device: DeviceSample, gpus: GpuTable) -> float | None:
    gpu = gpus.lookup(device.model)
    return None if gpu is None else gpu.tflops * device.mig_fraction
