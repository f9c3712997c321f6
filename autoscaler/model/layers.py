"""Amounts and the three layers of `autoScalingConfig`, in both published forms.

Every tuning field is optional and has no default here: absent means that the workload's QoS decides. A field that the
API server defaulted could not be told from one that the user set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import Field

from autoscaler.model.config import ALL_RESOURCES
from autoscaler.model.fields import (
    Bytes,
    Conflict,
    Count,
    Delay,
    Factor,
    ForecastName,
    Margin,
    Percent,
    Percentile,
    Period,
    Ratio,
    Share,
    Spec,
    StepSize,
    Target,
    Tflops,
    more_than,
)
from autoscaler.model.resources import SPECS, Resource
from autoscaler.model.rules import integer_at_most, quantity_at_most, validations

TARGETS: Final = {
    "all": ALL_RESOURCES,
    "tflops": frozenset({Resource.COMPUTE}),
    "compute": frozenset({Resource.COMPUTE}),
    "vram": frozenset({Resource.VRAM}),
}
"""Resources by the words for them; TensorFusion's releases say tflops or compute."""

_ENABLE = "true: applied; false or absent: recommended only."


class Figures(Spec):
    """Amounts per vGPU worker and per GPU device."""

    tflops: Tflops | None = Field(None, description="FP16 TFLOPs per worker and device; quote decimals.")
    vram: Bytes | None = Field(None, description="Device memory per worker and device, such as 4Gi.")
    compute: Percent | None = Field(
        None, description="Share of the device in percent, 0 to 100, instead of tflops; kept, not autoscaled."
    )

    def amount(self, resource: Resource) -> float | None:
        """Return TFLOPs or bytes, None if absent."""
        return self.vram if resource is Resource.VRAM else self.tflops


def figures_above(low: tuple[str, Figures | None], high: tuple[str, Figures | None]) -> Iterator[Conflict]:
    """Yield a conflict for each amount of the first (path, figures) pair that is above the second's."""
    if low[1] is None or high[1] is None:
        return
    for spec in SPECS:
        yield from more_than(
            (f"{low[0]}.{spec.key}", low[1].amount(spec.resource)),
            (f"{high[0]}.{spec.key}", high[1].amount(spec.resource)),
            spec.resource,
        )


class Resources(
    Spec,
    json_schema_extra=validations(
        quantity_at_most("requests.tflops", "limits.tflops"),
        quantity_at_most("requests.vram", "limits.vram"),
    ),
):
    """Guaranteed and highest amounts; a missing request equals the limit, a missing limit the request."""

    requests: Figures | None = Field(None, description="What a worker is guaranteed.")
    limits: Figures | None = Field(None, description="What a worker may use at most.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield requests above limits."""
        yield from figures_above(("requests", self.requests), ("limits", self.limits))


class PredictionSpec(Spec):
    """A forecast of compute behind a layer; beside an explicit percentile or formula it only raises."""

    enable: bool | None = Field(None, description="Whether the forecast is used.")
    model: ForecastName | None = Field(
        None,
        description="auto: the season counts as far as it came true; linear: half; seasonal-naive: yesterday; none.",
    )
    history_data_period: Period | None = Field(None, description="How far back the forecast learns, such as 14d.")
    prediction_period: Period | None = Field(None, description="How far ahead it looks, such as 30m.")


class AutoSetLimits(Spec):
    """Layer 1, fast: the burst ceiling on the GPUs that the workers already have."""

    enable: bool | None = Field(None, description=_ENABLE)
    target_resource: Target | None = Field(None, description="Resource that is scaled; absent: all.")
    evaluation_period: Period | None = Field(None, description="Time between two evaluations.")
    aggregation_period: Period | None = Field(None, description="How far back use is looked at, such as 1d.")
    percentile: Percentile | None = Field(None, description="Percentile of use that the ceiling starts from.")
    extra_tflops_buffer_ratio: Margin | None = Field(
        None, alias="extraTFlopsBufferRatio", description="Added on top of the estimated TFLOPs."
    )
    extra_vram_buffer_ratio: Margin | None = Field(
        None, alias="extraVRAMBufferRatio", description="Added on top of the estimated VRAM."
    )
    ignored_delta_range: Margin | None = Field(None, description="Dead band: smaller relative changes are not made.")
    scale_up_step: Factor | None = Field(
        None, description="On saturation the ceiling grows at least to the current one times this."
    )
    scale_down_stabilization: Delay | None = Field(
        None, description="A ceiling is lowered only after the lower figure has held for this long."
    )
    cool_down: Delay | None = Field(None, description="Shortest time between two changes.")
    max_ratio_to_requests: Factor | None = Field(None, description="The ceiling never passes the request times this.")
    prediction: PredictionSpec | None = Field(None, description="Forecast behind this layer.")


class AutoSetReplicas(Spec, json_schema_extra=validations(integer_at_most("minReplicas", "maxReplicas"))):
    """Layer 2, outward: more or fewer workers when the ceiling cannot follow."""

    enable: bool | None = Field(None, description=_ENABLE)
    target_tflops_of_limits: Share | None = Field(
        None, alias="targetTFlopsOfLimits", description="Use of the TFLOPs limit to steer to, such as 0.7."
    )
    target_vram_of_limits: Share | None = Field(
        None, alias="targetVRAMOfLimits", description="Use of the VRAM limit to steer to."
    )
    evaluation_period: Period | None = Field(None, description="Time between two evaluations.")
    min_replicas: Count | None = Field(None, description="Fewest workers.")
    max_replicas: Count | None = Field(None, description="Most workers.")
    scale_up_step: StepSize | None = Field(
        None, description='Most workers added per cool-down: a count, or a share such as "100%".'
    )
    scale_down_step: StepSize | None = Field(
        None, description='Most workers removed per cool-down: a count, or a share such as "50%".'
    )
    scale_up_cool_down_time: Delay | None = Field(None, description="Shortest time between two additions.")
    scale_down_cool_down_time: Delay | None = Field(None, description="Shortest time between two removals.")
    scale_down_stabilization: Delay | None = Field(
        None, description="Workers are removed only after the lower count has held for this long."
    )
    tolerance: Margin | None = Field(None, description="Relative distance from the target that is left alone.")
    prediction: PredictionSpec | None = Field(None, description="Forecast behind this layer.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a minimum above the maximum."""
        yield from more_than(("minReplicas", self.min_replicas), ("maxReplicas", self.max_replicas), None)


class AutoSetRequests(Spec):
    """Layer 3, slow: the reserved baseline, learnt over days."""

    enable: bool | None = Field(None, description=_ENABLE)
    target_resource: Target | None = Field(None, description="Resource that is scaled; absent: all.")
    percentile_for_auto_requests: Percentile | None = Field(
        None, description="Percentile of use to reserve; absent: by QoS."
    )
    extra_buffer_ratio: Margin | None = Field(None, description="Added on top of the percentile.")
    scale_down_stabilization: Delay | None = Field(
        None, description="A request is lowered only after the lower figure has held for this long."
    )
    evaluation_period: Period | None = Field(None, description="Time between two evaluations.")
    aggregation_period: Period | None = Field(None, description="How far back use is looked at, such as 7d.")
    prediction: PredictionSpec | None = Field(None, description="Forecast behind this layer.")


class AutoSetResources(Spec):
    """Requests and limits in the later TensorFusion form; translated to layers 1 and 3."""

    enable: bool | None = Field(None, description=_ENABLE)
    target_resource: Target | None = Field(None, description="Resource that is scaled; absent: all.")
    target_compute_percentile: Percentile | None = Field(
        None, description="Percentile of compute to request at QoS high."
    )
    lower_bound_compute_percentile: Percentile | None = Field(
        None, description="Percentile of compute to request at QoS low and medium."
    )
    upper_bound_compute_percentile: Percentile | None = Field(
        None, description="Percentile of compute for the limit, and for the request at QoS critical."
    )
    target_vram_percentile: Percentile | None = Field(
        None, alias="targetVRAMPercentile", description="Percentile of VRAM to request at QoS high."
    )
    lower_bound_vram_percentile: Percentile | None = Field(
        None, alias="lowerBoundVRAMPercentile", description="Percentile of VRAM to request at QoS low and medium."
    )
    upper_bound_vram_percentile: Percentile | None = Field(
        None,
        alias="upperBoundVRAMPercentile",
        description="Percentile of VRAM for the limit, and for the request at QoS critical.",
    )
    margin_fraction: Margin | None = Field(None, description="Added on top of the percentiles.")
    update_threshold: Margin | None = Field(
        None, description="Smaller relative changes are not made; at most marginFraction."
    )
    history_data_period: Period | None = Field(None, description="How far back use is looked at.")
    min_vram_resources_ratio: Ratio | None = Field(
        None, alias="minVRAMResourcesRatio", description="Least VRAM, relative to the user's own figure."
    )
    max_vram_resources_ratio: Ratio | None = Field(
        None, alias="maxVRAMResourcesRatio", description="Most VRAM, relative to the user's own figure."
    )
    min_compute_resources_ratio: Ratio | None = Field(
        None, description="Least TFLOPs, relative to the user's own figure."
    )
    max_compute_resources_ratio: Ratio | None = Field(
        None, description="Most TFLOPs, relative to the user's own figure."
    )
    initial_delay_period: Delay | None = Field(
        None, description="Nothing is lowered before a workload has run this long."
    )
    interval: Period | None = Field(None, description="Time between two evaluations.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield bounds in the wrong order and a threshold that no margin could cross."""
        pairs = (
            ("lowerBoundComputePercentile", self.lower_bound_compute_percentile),
            ("upperBoundComputePercentile", self.upper_bound_compute_percentile),
            ("lowerBoundVRAMPercentile", self.lower_bound_vram_percentile),
            ("upperBoundVRAMPercentile", self.upper_bound_vram_percentile),
            ("minVRAMResourcesRatio", self.min_vram_resources_ratio),
            ("maxVRAMResourcesRatio", self.max_vram_resources_ratio),
            ("minComputeResourcesRatio", self.min_compute_resources_ratio),
            ("maxComputeResourcesRatio", self.max_compute_resources_ratio),
            ("updateThreshold", self.update_threshold),
            ("marginFraction", self.margin_fraction),
        )
        for low, high in zip(pairs[::2], pairs[1::2], strict=True):
            yield from more_than(low, high, None)
