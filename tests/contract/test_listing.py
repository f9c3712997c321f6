"""What other programs rely on, as lists: a change to any of it shows in the diff of a `.txt` file beside this one.

`python -m tests.contract.test_listing` writes the lists anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from autoscaler.admission.metrics import ADMISSION_METRICS
from autoscaler.contract import metrics, quota
from autoscaler.contract.keys import Effect, QoS
from autoscaler.model.external import ScalerReason
from autoscaler.model.reasons import News, Verdict
from autoscaler.report.conditions import ConditionType, Reason
from autoscaler.report.events import EventReason
from autoscaler.report.metrics import CONTROLLER_METRICS
from autoscaler.report.reported import MetricsReason, SyncReason

HERE = Path(__file__).parent
DOCUMENTS = (
    quota.QuotaDocument,
    quota.WorkerQuota,
    quota.DeviceQuota,
    quota.QuotaStatus,
    quota.WorkerStatus,
    quota.DeviceStatus,
    quota.Observed,
    quota.DevicesStatus,
    quota.DeviceInfo,
    quota.Refusal,
)


def metric_lines() -> Iterator[str]:
    for table in (
        metrics.WORKER_METRICS,
        metrics.DEVICE_METRICS,
        metrics.AGENT_METRICS,
        CONTROLLER_METRICS,
        ADMISSION_METRICS,
    ):
        for family in table:
            yield f"{family.name} {family.type} {{{','.join(family.labels)}}}"


def condition_lines() -> Iterator[str]:
    for title, enum in (
        ("type", ConditionType),
        ("reason", Reason),
        ("reason (metrics)", MetricsReason),
        ("reason (guards)", Verdict),
        ("reason (nodes)", SyncReason),
        ("reason (external scaler)", ScalerReason),
        ("event", EventReason),
        ("event", News),
    ):
        for member in enum:
            yield f"{title}: {member.value}"


def quota_lines() -> Iterator[str]:
    yield f"PUT, GET {quota.QUOTAS_PATH}; GET {quota.DEVICES_PATH}; at most {quota.MAX_BODY_BYTES} bytes"
    yield f"qos: {', '.join(QoS)}"
    yield f"effect: {', '.join(Effect)}"
    for struct in DOCUMENTS:
        for field in msgspec.structs.fields(struct):
            need = "required" if field.required else "optional"
            yield f"{struct.__name__}.{field.encode_name}: {_type(field.type)} {need}"


def _type(kind: object) -> str:
    text = getattr(kind, "__name__", None) if "[" not in str(kind) and "|" not in str(kind) else None
    return text or str(kind).replace("autoscaler.contract.quota.", "").replace("autoscaler.contract.keys.", "")


LISTS = {"metrics.txt": metric_lines, "conditions.txt": condition_lines, "quota.txt": quota_lines}


def text_of(name: str) -> str:
    return "".join(f"{line}\n" for line in LISTS[name]())


@pytest.mark.parametrize("name", sorted(LISTS))
def test_the_contract_is_what_the_list_says(name):
    assert text_of(name) == (HERE / name).read_text(encoding="utf-8")


def test_worker_series_carry_no_pid_and_stay_within_twenty_five():
    assert len(metrics.WORKER_METRICS) <= 25
    assert "pid" not in {label for family in metrics.WORKER_METRICS for label in family.labels}


def test_no_two_families_share_a_name():
    names = [line.split()[0] for line in metric_lines()]
    assert len(names) == len(set(names))


if __name__ == "__main__":
    for name in LISTS:
        (HERE / name).write_text(text_of(name), encoding="utf-8")
        sys.stdout.write(f"wrote {HERE / name}\n")
