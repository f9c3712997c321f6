"""From the manifest's `autoScalingConfig`, in either form, to the typed policies of the layers.

The later form (`autoSetResources`) is translated as TensorFusion reads it: the request's percentile is its lower bound
at QoS low and medium, its target at high and its upper bound at critical; the limit's percentile is its upper bound.
"""

from __future__ import annotations

from typing import Final

from autoscaler.contract.keys import QoS
from autoscaler.model.autoscaling import AutoScalingConfig, CronScalingRule
from autoscaler.model.config import (
    Bounds,
    CronRule,
    ExternalScaler,
    LimitsPolicy,
    Mode,
    Prediction,
    ReplicasPolicy,
    RequestsPolicy,
)
from autoscaler.model.layers import (
    TARGETS,
    AutoSetLimits,
    AutoSetReplicas,
    AutoSetRequests,
    AutoSetResources,
    Figures,
    PredictionSpec,
)

Pair = tuple[float | None, float | None]
NONE: Final[Pair] = (None, None)
DEFAULT_EXTERNAL_TIMEOUT_SECONDS: Final = 5.0
DEFAULT_EXTERNAL_INTERVAL_SECONDS: Final = 60.0


def figures(amounts: Figures | None) -> Pair:
    """Return the amounts indexed by Resource; None is absent."""
    return NONE if amounts is None else (amounts.tflops, amounts.vram)


def mode(
    switch: bool | None, block: AutoSetLimits | AutoSetReplicas | AutoSetRequests | AutoSetResources | None
) -> Mode:
    """Return how far a layer may go: its annotation decides, else its block; no block is off."""
    if switch is not None:
        return Mode.ON if switch else Mode.OFF
    if block is None:
        return Mode.OFF
    return Mode.ON if block.enable else Mode.RECOMMEND


def requests_policy(config: AutoScalingConfig, qos: QoS) -> RequestsPolicy:
    """Return layer 3 as its block sets it; `mode` is left to the caller."""
    if config.auto_set_resources is not None:
        return _requests_of_resources(config.auto_set_resources, qos)
    block = config.auto_set_requests or AutoSetRequests()
    return RequestsPolicy(
        targets=TARGETS[block.target_resource or "all"],
        percentile=block.percentile_for_auto_requests,
        buffer_ratio=block.extra_buffer_ratio,
        evaluation_seconds=block.evaluation_period,
        aggregation_seconds=block.aggregation_period,
        stabilization_seconds=block.scale_down_stabilization,
        prediction=_prediction(block.prediction),
    )


def _requests_of_resources(block: AutoSetResources, qos: QoS) -> RequestsPolicy:
    compute, vram = {
        QoS.LOW: (block.lower_bound_compute_percentile, block.lower_bound_vram_percentile),
        QoS.MEDIUM: (block.lower_bound_compute_percentile, block.lower_bound_vram_percentile),
        QoS.HIGH: (block.target_compute_percentile, block.target_vram_percentile),
        QoS.CRITICAL: (block.upper_bound_compute_percentile, block.upper_bound_vram_percentile),
    }[qos]
    return RequestsPolicy(
        targets=TARGETS[block.target_resource or "all"],
        percentile=compute,
        vram_percentile=vram,
        buffer_ratio=block.margin_fraction,
        update_threshold_ratio=block.update_threshold,
        evaluation_seconds=block.interval,
        aggregation_seconds=block.history_data_period,
    )


def limits_policy(config: AutoScalingConfig) -> LimitsPolicy:
    """Return layer 1 as its block sets it; `mode` is left to the caller."""
    if config.auto_set_resources is not None:
        return _limits_of_resources(config.auto_set_resources)
    block = config.auto_set_limits or AutoSetLimits()
    return LimitsPolicy(
        targets=TARGETS[block.target_resource or "all"],
        percentile=block.percentile,
        tflops_buffer_ratio=block.extra_tflops_buffer_ratio,
        vram_buffer_ratio=block.extra_vram_buffer_ratio,
        ignored_delta_ratio=block.ignored_delta_range,
        scale_up_step=block.scale_up_step,
        max_ratio_to_requests=block.max_ratio_to_requests,
        evaluation_seconds=block.evaluation_period,
        aggregation_seconds=block.aggregation_period,
        stabilization_seconds=block.scale_down_stabilization,
        cool_down_seconds=block.cool_down,
        prediction=_prediction(block.prediction),
    )


def _limits_of_resources(block: AutoSetResources) -> LimitsPolicy:
    return LimitsPolicy(
        targets=TARGETS[block.target_resource or "all"],
        percentile=block.upper_bound_compute_percentile,
        vram_percentile=block.upper_bound_vram_percentile,
        tflops_buffer_ratio=block.margin_fraction,
        vram_buffer_ratio=block.margin_fraction,
        ignored_delta_ratio=block.update_threshold,
        evaluation_seconds=block.interval,
        aggregation_seconds=block.history_data_period,
    )


def replicas_policy(config: AutoScalingConfig) -> ReplicasPolicy:
    """Return layer 2 as its block sets it; `mode` is left to the caller."""
    block = config.auto_set_replicas or AutoSetReplicas()
    return ReplicasPolicy(
        target_tflops_ratio=block.target_tflops_of_limits,
        target_vram_ratio=block.target_vram_of_limits,
        evaluation_seconds=block.evaluation_period,
        min_replicas=block.min_replicas,
        max_replicas=block.max_replicas,
        scale_up_step=block.scale_up_step,
        scale_down_step=block.scale_down_step,
        scale_up_cool_down_seconds=block.scale_up_cool_down_time,
        scale_down_cool_down_seconds=block.scale_down_cool_down_time,
        stabilization_seconds=block.scale_down_stabilization,
        tolerance_ratio=block.tolerance,
        prediction=_prediction(block.prediction),
    )


def _prediction(block: PredictionSpec | None) -> Prediction:
    if block is None:
        return Prediction()
    return Prediction(
        enable=bool(block.enable),
        model=block.model or "auto",
        history_seconds=block.history_data_period,
        horizon_seconds=block.prediction_period,
    )


def bounds(config: AutoScalingConfig) -> Bounds:
    """Return the bounds; a ratio of `bounds` wins over the ones that autoSetResources carries per resource."""
    own, later = config.bounds, config.auto_set_resources or AutoSetResources()
    least = (later.min_compute_resources_ratio, later.min_vram_resources_ratio)
    most = (later.max_compute_resources_ratio, later.max_vram_resources_ratio)
    if own is None:
        return Bounds(min_ratio=least, max_ratio=most)
    return Bounds(
        min_allowed=figures(own.min_allowed),
        max_allowed=figures(own.max_allowed),
        min_ratio=least if own.min_ratio is None else (own.min_ratio, own.min_ratio),
        max_ratio=most if own.max_ratio is None else (own.max_ratio, own.max_ratio),
    )


def cron_rule(rule: CronScalingRule) -> CronRule:
    """Return one rule by the clock; like TensorFusion's, it does nothing unless enabled."""
    desired = rule.desired_resources
    return CronRule(
        name=rule.name,
        start=rule.start,
        end=rule.end,
        time_zone=rule.time_zone or "UTC",
        enable=bool(rule.enable),
        priority=rule.priority or 0,
        requests=figures(desired.requests if desired else None),
        limits=figures(desired.limits if desired else None),
        replicas=rule.desired_replicas,
    )


def external_scaler(config: AutoScalingConfig) -> ExternalScaler | None:
    """Return the external scaler, None without an address to ask."""
    block = config.external_scaler
    if block is None or block.url is None:
        return None
    secret = block.api_key_secret_ref
    return ExternalScaler(
        url=block.url,
        enable=bool(block.enable),
        timeout_seconds=block.timeout or DEFAULT_EXTERNAL_TIMEOUT_SECONDS,
        interval_seconds=block.interval or DEFAULT_EXTERNAL_INTERVAL_SECONDS,
        initial_delay_seconds=block.initial_delay_period or 0.0,
        secret_name=secret.name if secret else "",
        secret_key=(secret.key or "") if secret else "",
        secret_namespace=(secret.namespace or "") if secret else "",
    )


def initial_delay_seconds(config: AutoScalingConfig) -> float | None:
    """Return the delay of the configuration, else of the later form, else of the external scaler."""
    later, external = config.auto_set_resources, config.external_scaler
    delays = (
        config.initial_delay_period,
        later.initial_delay_period if later else None,
        external.initial_delay_period if external else None,
    )
    return next((delay for delay in delays if delay is not None), None)


def config_warnings(config: AutoScalingConfig) -> list[str]:
    """Return what is allowed but probably not meant."""
    warnings = []
    for rule in config.cron_scaling_rules or ():
        if rule.enable is None:
            warnings.append(f"cron rule {rule.name} has no `enable: true` and does nothing")
        elif rule.desired_resources is None and rule.desired_replicas is None:
            warnings.append(f"cron rule {rule.name} has neither desiredResources nor desiredReplicas and does nothing")
    scaler = config.external_scaler
    if scaler is not None and scaler.api_key_secret_ref is not None and (scaler.url or "").startswith("http://"):
        warnings.append("externalScaler sends its key in clear text: its url is http://, not https://")
    return warnings
