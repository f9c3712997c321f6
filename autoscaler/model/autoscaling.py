"""`autoScalingConfig` as a whole: the layers, rules by the clock, bounds and the external scaler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from autoscaler.model.cron import parse_cron, parse_zone
from autoscaler.model.fields import Conflict, CountOrZero, Delay, Name, Period, Ratio, Spec, Text, more_than, refusal
from autoscaler.model.layers import (
    AutoSetLimits,
    AutoSetReplicas,
    AutoSetRequests,
    AutoSetResources,
    Figures,
    Resources,
    figures_above,
)
from autoscaler.model.problems import ABSENT
from autoscaler.model.quantity import format_duration
from autoscaler.model.rules import one_form, quantity_at_most, validations

MAX_CRON_RULES = 64
MAX_EXTERNAL_TIMEOUT_SECONDS = 30.0

_CRON_PATTERN = (
    r"^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|[0-9*/,?-]+ +[0-9*/,?-]+ +[0-9*/,?LW-]+ "
    r"+([0-9*/,?-]|[A-Za-z]{3})+ +([0-9*/,?L#-]|[A-Za-z]{3})+)$"
)


def _cron(text: str) -> str:
    try:
        return parse_cron(text)
    except ValueError as error:
        raise refusal(str(error)) from None


def _zone(name: str) -> str:
    try:
        return parse_zone(name)
    except ValueError as error:
        raise refusal(str(error)) from None


Cron = Annotated[str, AfterValidator(_cron), Field(max_length=128, json_schema_extra={"pattern": _CRON_PATTERN})]
Zone = Annotated[str, AfterValidator(_zone), Field(max_length=64)]


class CronScalingRule(Spec):
    """Figures that hold between two moments of the clock; works without any other layer."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="Name, unique among the rules.")
    enable: bool | None = Field(None, description="true: the rule is in force; false or absent: it does nothing.")
    time_zone: Zone | None = Field(None, description="IANA time zone of start and end; absent: UTC.")
    start: Cron = Field(description="Cron expression of five fields: when the rule begins.")
    end: Cron = Field(description="Cron expression of five fields: when the rule ends.")
    desired_resources: Resources | None = Field(None, description="Amounts while the rule holds.")
    desired_replicas: CountOrZero | None = Field(None, description="Workers while the rule holds.")
    priority: Annotated[int, Field(ge=-1000, le=1000, json_schema_extra={"format": "int32"})] | None = Field(
        None, description="Where rules overlap the highest wins, then the earlier in the list; absent: 0."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a window that is always empty."""
        if self.start == self.end:
            yield "end", self.end, "another moment than start"


class SecretReference(Spec):
    """A key of a Secret in the workload's namespace."""

    name: Name = Field(description="Name of the Secret.")
    namespace: Name | None = Field(None, description="Its namespace; must be the workload's own.")
    key: Text | None = Field(None, description="Key within it; absent: the first of apiKey, token and key.")


class ExternalScalerSpec(Spec):
    """A scaler of the user's own, asked over HTTP; its answer is an order within bounds, capacity and live use."""

    enable: bool | None = Field(None, description="Whether it is asked.")
    url: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^ ]+$")] | None = Field(
        None, description="Where the current figures are posted to."
    )
    api_key_secret_ref: SecretReference | None = Field(
        None, alias="apiKeySecretRef", description="Secret with the bearer token to send."
    )
    timeout: Period | None = Field(None, description="How long an answer is waited for, at most 30s; absent: 5s.")
    initial_delay_period: Delay | None = Field(None, description="It is not asked before a workload has run this long.")
    interval: Period | None = Field(None, description="Time between two questions; absent: 1m.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield an enabled scaler that cannot be reached."""
        if self.enable and self.url is None:
            yield "url", ABSENT, "an https:// or http:// URL, because enable is true"
        if self.timeout is not None and self.timeout > MAX_EXTERNAL_TIMEOUT_SECONDS:
            allowed = f"at most {format_duration(MAX_EXTERNAL_TIMEOUT_SECONDS)}: a pass waits for it"
            yield "timeout", format_duration(self.timeout), allowed


class BoundsSpec(
    Spec,
    json_schema_extra=validations(
        quantity_at_most("minAllowed.tflops", "maxAllowed.tflops"),
        quantity_at_most("minAllowed.vram", "maxAllowed.vram"),
    ),
):
    """Limits on what may be applied; the recommendation without them is still shown."""

    min_allowed: Figures | None = Field(None, description="Least amounts, absolute.")
    max_allowed: Figures | None = Field(None, description="Most amounts, absolute.")
    min_ratio: Ratio | None = Field(None, description="Least amounts, relative to the user's own figures.")
    max_ratio: Ratio | None = Field(None, description="Most amounts, relative to the user's own figures.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield minima above maxima."""
        yield from figures_above(("minAllowed", self.min_allowed), ("maxAllowed", self.max_allowed))
        yield from more_than(("minRatio", self.min_ratio), ("maxRatio", self.max_ratio), None)


_CRON_LIST: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class AutoScalingConfig(
    Spec,
    json_schema_extra=validations(
        one_form("autoSetResources", "autoSetRequests", "autoSetLimits"),
    ),
):
    """What may be scaled and how. A layer whose block is absent is off; its annotation has the last word."""

    auto_set_limits: AutoSetLimits | None = Field(None, description="Layer 1: the burst ceiling.")
    auto_set_replicas: AutoSetReplicas | None = Field(None, description="Layer 2: the number of workers.")
    auto_set_requests: AutoSetRequests | None = Field(None, description="Layer 3: the reserved baseline.")
    auto_set_resources: AutoSetResources | None = Field(
        None,
        description="Layers 1 and 3 in the later TensorFusion form, instead of autoSetRequests and autoSetLimits.",
    )
    cron_scaling_rules: (
        Annotated[
            tuple[CronScalingRule, ...], Field(strict=False, max_length=MAX_CRON_RULES, json_schema_extra=_CRON_LIST)
        ]
        | None
    ) = Field(None, description="Figures by the clock.")
    external_scaler: ExternalScalerSpec | None = Field(None, description="A scaler of the user's own.")
    bounds: BoundsSpec | None = Field(None, description="Limits on what may be applied.")
    initial_delay_period: Delay | None = Field(
        None, description="Nothing is lowered before a workload has run this long."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a layer in both forms, and rules that share a name."""
        if self.auto_set_resources is not None:
            for form, block in (("autoSetRequests", self.auto_set_requests), ("autoSetLimits", self.auto_set_limits)):
                if block is not None:
                    yield form, "set beside autoSetResources", f"one form: {form}, or autoSetResources"
        seen: set[str] = set()
        for index, rule in enumerate(self.cron_scaling_rules or ()):
            if rule.name in seen:
                yield f"cronScalingRules[{index}].name", rule.name, "a name that no other rule has"
            seen.add(rule.name)
