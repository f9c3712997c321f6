"""A story as its YAML file tells it, read strictly: what is not known is refused, so that no line says nothing.

    story: One sentence.
    start: "2026-03-02T07:00"      by the clock of `zone` (absent: UTC); absent: 2 March 2026, a Monday, 00:00
    zone: Europe/Berlin
    length: 4h
    every: 1m                      time between two passes, absent: 1m
    workloads:
      - name: chat                 annotations without their prefix, the profile's spec as users write it
        annotations: {qos: high}
        profile: {resources: ..., autoScalingConfig: ...}
        replicas: 1
        device: {tflops: 989, vram: 80Gi}    one for each worker
        places: 4                  workers beyond these stay pending
        load: [...]                TFLOPs of the whole service, spread over ready workers; or `compute`, of each worker
        vram: [...]                bytes of each worker; see `demand` for segments
        scaler: {desiredReplicas: 3}     what its own scaler answers
    disturbances:
      - {prometheus: away, from: 1h, to: 2h}
      - {scaler: dead, from: 1h, to: 2h}
    expect: [...]                  see `expectations`

Profiles and annotations are read by the product's own parser and resolver.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml

from autoscaler.contract.keys import PREFIX
from autoscaler.contract.quota import DeviceInfo
from autoscaler.model.config import Configuration
from autoscaler.model.profile import parse_spec
from autoscaler.model.quantity import parse_amount
from autoscaler.model.resolve import Defaults, Owner, resolve
from autoscaler.model.resources import Resource
from autoscaler.model.usage import Floats
from tests.scenarios.demand import Span, demand, minutes_of

_STORY = {"story", "start", "zone", "length", "every", "workloads", "disturbances", "expect"}
_ROLE = {"name", "annotations", "profile", "replicas", "device", "places", "load", "compute", "vram", "scaler"}
A_MONDAY = "2026-03-02T00:00"
_TROUBLES = {"prometheus": "away", "scaler": "dead"}


@dataclass(frozen=True)
class Role:
    """One workload: its configuration, and what it would use in each minute (T,).

    `compute`: TFLOPs of each worker, or with `shared` of all together; `vram`: bytes of each worker.
    """

    name: str
    config: Configuration
    replicas: int
    device: DeviceInfo
    places: int
    compute: Floats
    shared: bool
    vram: Floats
    scaler: bytes | None


@dataclass(frozen=True)
class Trouble:
    """What is broken from one minute to another."""

    what: str
    first: int
    last: int


@dataclass(frozen=True)
class Story:
    """What happens and what is expected of it; lengths in minutes."""

    title: str
    start: float
    zone: ZoneInfo
    minutes: int
    every: int
    roles: tuple[Role, ...]
    troubles: tuple[Trouble, ...]
    expect: tuple[Mapping[str, Any], ...]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each workload by name."""
        return {role.name: row for row, role in enumerate(self.roles)}

    def troubled(self, what: str, minute: int) -> bool:
        """Tell whether something is broken at a minute."""
        return any(one.what == what and one.first <= minute < one.last for one in self.troubles)


def read_story(path: Path) -> Story:
    """Return the story of a file."""
    return parse_story(yaml.safe_load(path.read_text(encoding="utf-8")))


def parse_story(told: Mapping[str, Any]) -> Story:
    """Return the story of its YAML form.

    Raises:
        ValueError: something in it is not known.
        ConfigError: a profile or annotation that the product refuses.
    """
    _refuse_unknown(told, _STORY)
    zone = ZoneInfo(told.get("zone", "UTC"))
    start = datetime.fromisoformat(told.get("start", A_MONDAY))
    span = Span(minutes_of(told["length"]), start.replace(tzinfo=zone).timestamp(), zone)
    return Story(
        title=told["story"],
        start=span.start,
        zone=zone,
        minutes=span.minutes,
        every=minutes_of(told.get("every", "1m")),
        roles=tuple(_role(role, span) for role in told["workloads"]),
        troubles=tuple(map(_trouble, told.get("disturbances", ()))),
        expect=tuple(told["expect"]),
    )


def _role(told: Mapping[str, Any], span: Span) -> Role:
    _refuse_unknown(told, _ROLE)
    replicas, device = told.get("replicas", 1), told.get("device", {"tflops": 989, "vram": "80Gi"})
    annotations = {PREFIX + key: value for key, value in told.get("annotations", {}).items()}
    size = parse_amount(Resource.VRAM, device["vram"])
    return Role(
        name=told["name"],
        config=resolve(annotations, {}, parse_spec(told.get("profile")), Defaults(), Owner(replicas=replicas)),
        replicas=replicas,
        device=DeviceInfo("", "NVIDIA H100 80GB HBM3", int(size), float(device["tflops"])),
        places=told.get("places", 1000),
        compute=demand(told["load"] if "load" in told else told["compute"], Resource.COMPUTE, span),
        shared="load" in told,
        vram=demand(told["vram"], Resource.VRAM, span),
        scaler=json.dumps(told["scaler"]).encode() if "scaler" in told else None,
    )


def _trouble(told: Mapping[str, Any]) -> Trouble:
    (what,) = told.keys() & _TROUBLES.keys()
    _refuse_unknown(told, {what, "from", "to"})
    if told[what] != _TROUBLES[what]:
        raise ValueError(f"{what}: {told[what]} is not known, only {_TROUBLES[what]}")
    return Trouble(what, minutes_of(told["from"]), minutes_of(told["to"]))


def _refuse_unknown(told: Mapping[str, Any], known: set[str]) -> None:
    if told.keys() - known:
        raise ValueError(f"{sorted(told.keys() - known)}: not known, only {sorted(known)}")
