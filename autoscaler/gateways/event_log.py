"""Events in a file: counted up when they repeat, the oldest forgotten."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from autoscaler.gateways.files import Stamp, replace, stamp_of
from autoscaler.gateways.manifests import parse_file
from autoscaler.model.event import EventKey, event_key, new_event, series_after
from autoscaler.model.steps import Emit
from autoscaler.model.workload import Manifest

EVENTS_NAME: Final = "events.yaml"
KEPT: Final = 256
"""Events kept in the file; an API server forgets them after an hour."""


class EventLog:
    """The events of one folder, newest last, one JSON line a document (which is YAML). The caller holds the lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_NAME
        self._stamp: Stamp | None = None
        self._events: OrderedDict[EventKey, dict[str, Any]] = OrderedDict()
        self._lines: dict[EventKey, str] = {}

    def record(self, emit: Emit, now: float) -> None:
        """Add an event, or count it up.

        Raises:
            OSError: the file can't be read or written.

        """
        self._refresh()
        key = event_key(emit)
        known = self._events.get(key)
        event = {**known, "series": series_after(known, now)} if known is not None else new_event(emit, now)
        self._keep(key, event)
        while len(self._events) > KEPT:
            oldest, _ = self._events.popitem(last=False)
            del self._lines[oldest]
        self._stamp = replace(self._path, "".join(self._lines[key] for key in self._events))

    def _refresh(self) -> None:
        try:
            stamp = stamp_of(self._path.stat())
        except FileNotFoundError:
            self._events.clear()
            self._lines.clear()
            return
        if stamp == self._stamp:
            return
        self._events.clear()
        self._lines.clear()
        for document in parse_file(self._path.read_text(encoding="utf-8", errors="replace"), EVENTS_NAME):
            for event in document.objects:
                self._keep(_key_of(event), dict(event))

    def _keep(self, key: EventKey, event: dict[str, Any]) -> None:
        self._events[key] = event
        self._events.move_to_end(key)
        self._lines[key] = f"---\n{json.dumps(event, ensure_ascii=False)}\n"


def _key_of(event: Manifest) -> EventKey:
    about = event.get("regarding") or {}
    return EventKey(
        kind=str(about.get("kind", "")),
        namespace=str(about.get("namespace", "")),
        name=str(about.get("name", "")),
        uid=str(about.get("uid", "")),
        reason=str(event.get("reason", "")),
        note=str(event.get("note", "")),
    )
