"""A record in plain words, for whoever asks why: what was seen, what it led to, which guard changed it, what moves it.

Neighbours: `explain_steps` words the guards, `explain_moves` what would have to happen, `terminal` and `chart` draw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from autoscaler.model.config import Mode
from autoscaler.model.decision import LAYER_NAMES, Field
from autoscaler.model.reasons import Cause
from autoscaler.model.record import FigureRecord, Record, Step
from autoscaler.report.account import Account, Change
from autoscaler.report.estimates import inputs_of
from autoscaler.report.explain_moves import moves_of
from autoscaler.report.explain_steps import step_text
from autoscaler.report.message import CAUSE_TEXT
from autoscaler.report.wording import amount, clock, name_of, number, span

WIDTH: Final = 96
LABEL: Final = 9
SHOWN_CHANGES: Final = 8
MODE_TEXT: Final = {
    Mode.ON: "",
    Mode.RECOMMEND: "auto-{layer} only recommends: ",
    Mode.OFF: "auto-{layer} is off: ",
}


def explained(account: Account, width: int = WIDTH) -> list[str]:
    """Return an account as lines of at most `width` characters."""
    record = account.record
    lines = [f"{record.key} at {clock(record.at)}, service level {record.qos.value}", f"  {_evidence(record)}"]
    for figure in record.figures:
        lines += ["", _headline(figure)]
        for label, text in _parts(record, figure):
            lines += _wrapped(label, text, width)
    if account.changes:
        lines += ["", "last changes"]
        lines += [f"  {_change(change, record.at)}" for change in account.changes[-SHOWN_CHANGES:]]
    return lines


def _wrapped(label: str, text: str, width: int) -> list[str]:
    hang = " " * (LABEL + 2)
    return textwrap.wrap(
        text, width, initial_indent=f"  {label:<{LABEL}}", subsequent_indent=hang, break_long_words=False
    )


def _evidence(record: Record) -> str:
    if not record.samples:
        return "no sample was seen yet"
    age, length = record.at - record.last_at, record.last_at - record.first_at
    return f"{record.samples:,.0f} samples over {span(length)}, the newest {span(age)} old"


def _headline(figure: FigureRecord) -> str:
    field, current = figure.field, figure.current
    name = name_of(field)
    moved = figure.allowed != current and not math.isnan(figure.allowed)
    wants = figure.recommended not in {current, figure.allowed} and not math.isnan(figure.recommended)
    wish = f", recommended {amount(field, figure.recommended)}" if wants else ""
    if moved:
        return f"{name}: {amount(field, current)} → {amount(field, figure.allowed)}{wish}"
    return f"{name}: {'held at' if wants else 'stays'} {amount(field, current)}{wish}"


def _parts(record: Record, figure: FigureRecord) -> Iterator[tuple[str, str]]:
    """Yield labelled sentences in the order in which things happened."""
    estimated = figure.estimated
    yield "seen", _seen(figure)
    reason = CAUSE_TEXT.get(estimated.cause, "")
    formula = _FORMULAS[figure.field](record, figure) if math.isnan(_ordered(figure)) else ""
    wanted = amount(figure.field, estimated.figure)
    yield "led to", f"{formula}{wanted}: {estimated.cause}, {reason}"
    yield "guards", _steps_text(figure.allowed_steps, record, figure) or "none changed it"
    shown = _steps_text(figure.recommended_steps, record, figure)
    if shown and figure.recommended not in {figure.current, figure.allowed}:
        yield "advice", shown
    prefix = MODE_TEXT[figure.mode].format(layer=LAYER_NAMES[figure.field])
    yield "to move", prefix + "; ".join(moves_of(record, figure))


def _steps_text(steps: Sequence[Step], record: Record, figure: FigureRecord) -> str:
    """Return the steps that left another figure than they found."""
    return "; then ".join(step_text(step, figure, record.at) for step in steps if step.after != step.before)


def _seen(figure: FigureRecord) -> str:
    known = [
        f"{name.removesuffix('_seconds').replace('_', ' ')} {number(figure.field, name, value)}"
        for name, value in figure.estimated.inputs.items()
        if not math.isnan(value)
    ]
    return ", ".join(known) if known else "nothing yet"


def _ordered(figure: FigureRecord) -> float:
    return inputs_of(figure)["ordered"]


def _change(change: Change, now: float) -> str:
    before, after = amount(change.field, change.before), amount(change.field, change.after)
    return f"{clock(change.at, now)}  {name_of(change.field)} {before} → {after}, {change.cause}"


def _compute_request(_: Record, figure: FigureRecord) -> str:
    known = inputs_of(figure)
    if math.isnan(known["quantile"]):
        return ""
    target = max(known["quantile"] * (1 + known["buffer_ratio"]), known["floor"])
    text = (
        f"max({known['quantile']:.4g} x (1 + {known['buffer_ratio']:g}), floor {known['floor']:.3g}) = {target:.4g}; "
    )
    if figure.estimated.cause is Cause.EXCEEDED:
        text += f"at least 1.1 x {known['peak_above_request']:.4g} = {1.1 * known['peak_above_request']:.4g}; "
    return text


def _compute_limit(_: Record, figure: FigureRecord) -> str:
    known = inputs_of(figure)
    if figure.estimated.cause is Cause.SATURATED:
        return f"{known['step']:g} x {figure.current:.4g}, at least what was learnt; "
    visible = f", {known['visible_limit']:.4g} visible)"
    if not math.isnan(known["percentile"]):
        return f"max({known['quantile']:.4g} x (1 + {known['buffer_ratio']:g}){visible}; "
    request, peak, ratio = known["request"], known["peak_7d"], known["ratio_to_request"]
    floor = 0.1 * figure.terms["original"]
    return f"max(1.3 x {request:.4g}, min(1.25 x {peak:.4g}, {ratio:g} x {request:.4g}), {floor:.3g}{visible}; "


def _vram_request(_: Record, figure: FigureRecord) -> str:
    known, field = inputs_of(figure), figure.field
    if math.isnan(known["working_level"]):
        return ""
    live, working, above = known["live"], known["working_level"], known["buffer_ratio"]
    text = f"max(live {amount(field, live)}, working level {amount(field, working)}) x (1 + {above:g})"
    if figure.estimated.cause is Cause.IDLE:
        return f"idle: max(1.05 x live {amount(field, live)}, 250Mi); "
    return f"{text}, at most the ceiling; "


def _vram_limit(_: Record, figure: FigureRecord) -> str:
    known, field = inputs_of(figure), figure.field
    if not math.isnan(known["percentile"]):
        return f"{amount(field, known['quantile'])} x (1 + {known['limit_buffer_ratio']:g}); "
    if math.isnan(known["peak_4h"]):
        return ""
    peak, working = amount(field, known["peak_4h"]), amount(field, known["working_level"])
    margin, cap = known["margin_ratio"], known["burst_cap"]
    return f"min({peak} x (1 + {margin:.3g}), {cap:g} x {working}), at least 1.05 x {peak}; "


def _replicas(_: Record, __: FigureRecord) -> str:
    return ""


_FORMULAS: Final[Mapping[Field, Callable[[Record, FigureRecord], str]]] = {
    Field.COMPUTE_REQUEST: _compute_request,
    Field.COMPUTE_LIMIT: _compute_limit,
    Field.VRAM_REQUEST: _vram_request,
    Field.VRAM_LIMIT: _vram_limit,
    Field.REPLICAS: _replicas,
}
