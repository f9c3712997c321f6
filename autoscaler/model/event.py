"""An event as a manifest of `events.k8s.io/v1`: rendered from an Emit, counted up when it happens again. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from autoscaler.contract.keys import DOMAIN, FIELD_MANAGER
from autoscaler.model.steps import Emit

API_VERSION: Final = "events.k8s.io/v1"
CONTROLLER: Final = f"{DOMAIN}/autoscaler"
NOTE_CHARACTERS: Final = 1024
"""Longest note that an API server takes."""


class EventKey(NamedTuple):
    """What makes two events the same event, counted up instead of listed twice."""

    kind: str
    namespace: str
    name: str
    uid: str
    reason: str
    note: str


def micro_time(now: float) -> str:
    """Return seconds since the epoch as Kubernetes' MicroTime; all six digits, even when they are zero."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def event_key(emit: Emit) -> EventKey:
    """Return the identity of an event to be recorded."""
    ref = emit.ref
    return EventKey(ref.kind, ref.namespace, ref.name, ref.uid, emit.reason, emit.message[:NOTE_CHARACTERS])


def new_event(emit: Emit, now: float) -> dict[str, Any]:
    """Return the manifest of an event that happened for the first time at `now` (seconds since the epoch)."""
    ref = emit.ref
    namespace = ref.namespace or "default"
    return {
        "apiVersion": API_VERSION,
        "kind": "Event",
        "metadata": {"name": _name(emit, now), "namespace": namespace},
        "eventTime": micro_time(now),
        "reportingController": CONTROLLER,
        "reportingInstance": FIELD_MANAGER,
        "action": emit.reason,
        "reason": emit.reason,
        "type": "Warning" if emit.warning else "Normal",
        "note": emit.message[:NOTE_CHARACTERS],
        "regarding": {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "namespace": namespace,
            "name": ref.name,
            "uid": ref.uid,
        },
    }


def _name(emit: Emit, now: float) -> str:
    # One object may have several events at one moment; names are unique and at most 253 characters.
    ref = emit.ref  # an owner and its workload have one name
    what = zlib.crc32(f"{ref.kind}\0{ref.uid}\0{emit.reason}\0{emit.message}".encode())
    return f"{emit.ref.name[:200]}.{int(now * 1e6):x}{what:08x}"


def series_after(event: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return the `series` of an event that happened once more at `now`; the first repetition counts 2."""
    count = int(event.get("series", {}).get("count", 1))
    return {"count": count + 1, "lastObservedTime": micro_time(now)}
