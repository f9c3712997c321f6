"""What each guard did to a figure, in words and with its numbers; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from autoscaler.model.record import EVALUATION, LAYER, PARTNER, REMEMBERED, FigureRecord, Step
from autoscaler.report.message import VERDICT_TEXT
from autoscaler.report.wording import amount, clock, span, until

_Word = Callable[[Step, FigureRecord, float], str]


def step_text(step: Step, figure: FigureRecord, now: float) -> str:
    """Return one step: what it left of the figure, and why."""
    field = figure.field
    if step.after == figure.current:
        effect = f"{amount(field, step.before)} held at {amount(field, step.after)}"
    else:
        effect = f"{amount(field, step.before)} → {amount(field, step.after)}"
    word = _WORDS.get(step.guard, _any)
    return f"{effect} ({step.guard.replace('_', ' ')}: {word(step, figure, now)})"


def _any(step: Step, figure: FigureRecord, now: float) -> str:
    text = VERDICT_TEXT.get(step.verdict, "") or str(step.verdict)
    if "until_at" in step.numbers:
        return f"{text}, {until(step.numbers['until_at'], now)}"
    told = [f"{name} {amount(figure.field, value)}" for name, value in step.numbers.items()]
    return ", ".join((text, *told))


def _layer(_: Step, figure: FigureRecord, __: float) -> str:
    return "the layer is " + ("off" if figure.mode.value == "off" else "set to recommend only")


def _evaluation(step: Step, _: FigureRecord, now: float) -> str:
    return f"looked at every {span(step.numbers['evaluation_seconds'])}, not {until(step.numbers['until_at'], now)}"


def _remembered(step: Step, _: FigureRecord, now: float) -> str:
    return f"shown as at {clock(step.numbers['evaluated_at'], now)}, the difference is no news"


def _partner(step: Step, figure: FigureRecord, _: float) -> str:
    return f"not over the limit beside it, {amount(figure.field, step.numbers['limit'])}"


def _enough(step: Step, _: FigureRecord, now: float) -> str:
    numbers = step.numbers
    if numbers["samples"] < numbers["min_samples"]:
        return f"{numbers['samples']:.0f} of {numbers['min_samples']:.0f} samples yet"
    return f"initial delay of {span(numbers['initial_delay_seconds'])}, {until(numbers['until_at'], now)}"


def _fresh(step: Step, _: FigureRecord, __: float) -> str:
    age, most = step.numbers["age_seconds"], step.numbers["fresh_seconds"]
    if not math.isfinite(most):
        return "history could not be read"
    return f"the newest sample is {span(age)} old, at most {span(most)} is fresh"


def _dead_band(step: Step, figure: FigureRecord, _: float) -> str:
    return f"less than {step.numbers['band_ratio']:.0%} off {amount(figure.field, figure.current)}"


def _stabilization(step: Step, figure: FigureRecord, now: float) -> str:
    numbers = step.numbers
    window = span(numbers["window_seconds"])
    if "until_at" not in numbers:
        return f"the highest count of the last {window}"
    if step.after == figure.current:
        return f"it must stay low for {window}, {until(numbers['until_at'], now)}"
    return f"the most it wanted within {window}"


def _step(step: Step, _: FigureRecord, __: float) -> str:
    if "most_added" in step.numbers:
        return f"at most {step.numbers['most_added']:g} more at once"
    return f"at most {step.numbers['most_removed']:g} fewer at once"


def _cool_down(step: Step, _: FigureRecord, now: float) -> str:
    numbers = step.numbers
    moved, wait = clock(numbers["moved_at"], now), span(numbers["cool_down_seconds"])
    return f"changed at {moved} and waits {wait}, {until(numbers['until_at'], now)}"


def _rollback(step: Step, figure: FigureRecord, now: float) -> str:
    good = amount(figure.field, step.numbers["last_good"])
    return f"a shrink did harm, so it is back at {good} and does not shrink {until(step.numbers['until_at'], now)}"


def _quota(step: Step, figure: FigureRecord, now: float) -> str:
    if "quota_left" not in step.numbers:
        return _any(step, figure, now)
    left = amount(figure.field, step.numbers["quota_left"])
    return f"the namespace's resource quota has {left} left for all its workers"


def _live_use(step: Step, figure: FigureRecord, _: float) -> str:
    live = step.numbers.get("live", math.nan)
    if math.isnan(live):
        return "use now is unknown, so it does not shrink"
    return f"in use now are {amount(figure.field, live)}, plus {step.numbers['headroom_ratio']:.0%}"


def _bounds(step: Step, figure: FigureRecord, _: float) -> str:
    numbers, field = step.numbers, figure.field
    if "ratio_to_request" in numbers and step.after == numbers["ratio_to_request"] * numbers["request"]:
        return f"at most {numbers['ratio_to_request']:g} x the request of {amount(field, numbers['request'])}"
    return f"allowed are {amount(field, numbers['minimum'])} to {amount(field, numbers['maximum'])}"


def _order(step: Step, figure: FigureRecord, _: float) -> str:
    field, numbers = figure.field, step.numbers
    if step.after == numbers.get("device"):
        return f"the device has {amount(field, numbers['device'])}"
    if "request" in numbers:
        return f"never under its request of {amount(field, numbers['request'])}"
    return f"never over its limit of {amount(field, numbers['limit'])}"


def _capacity(step: Step, figure: FigureRecord, now: float) -> str:
    numbers, field = step.numbers, figure.field
    if "given" in numbers:
        return f"it gave {amount(field, numbers['given'])} to a workload of a higher service level"
    if "room" not in numbers:
        return _any(step, figure, now)
    text = f"room for {amount(field, max(numbers['room'], 0.0))} more per worker"
    if "free" in numbers:
        free, workers = amount(field, max(numbers["free"], 0.0)), numbers["workers_on_device"]
        text += f"; the tightest device had {free} free for {workers:g} of its workers and all others"
    return text


def _published(_: Step, figure: FigureRecord, __: float) -> str:
    return "rounded up to three digits" if figure.field.resource == 0 else "rounded up to whole MiB"


_WORDS: Final[Mapping[str, _Word]] = {
    LAYER: _layer,
    EVALUATION: _evaluation,
    REMEMBERED: _remembered,
    PARTNER: _partner,
    "enough": _enough,
    "fresh": _fresh,
    "dead_band": _dead_band,
    "stabilization": _stabilization,
    "step": _step,
    "cool_down": _cool_down,
    "live_use": _live_use,
    "bounds": _bounds,
    "order": _order,
    "rollback": _rollback,
    "quota": _quota,
    "capacity": _capacity,
    "published": _published,
}
"""By guard; every other guard's verdict speaks for it."""
