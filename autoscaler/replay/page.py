"""A backtest as one HTML page that needs nothing else: headline, policies, workloads, and what each went through.

A contender is chosen with radio buttons and CSS alone; the only script sorts the table of workloads, and every number
is there without it. Neighbours: `panel` draws the small multiples, `page.css` and `page.js` are put in as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from typing import Final

import numpy as np

from autoscaler.model.quantity import format_duration
from autoscaler.model.resources import Resource
from autoscaler.model.usage import Floats
from autoscaler.replay.backtest import Backtest, Outcome, Result
from autoscaler.replay.measure import Measures, saved_share
from autoscaler.replay.panel import EPOCH_SECONDS, NOUNS, SCALE, UNITS, Panel, moment_text, render
from autoscaler.replay.printed import legend, number, percent
from autoscaler.replay.strip import FLEET_COLUMNS
from autoscaler.replay.tables import headline, policies, workloads
from autoscaler.report.chart import TIME, Series, line_chart

MOST_DRAWN: Final = 60
"""Workloads that get pictures, those that reserve the most; the table has all."""
CLOSED_LOOP: Final = (
    "Closed loop: a policy sees only what a meter would have seen under the limits it set itself. Demand above its "
    "compute limit is throttled and lost; VRAM above its limit kills the worker, which is back after 300 s."
)
NOT_REPLAYED: Final = "Not replayed: replicas, rules by the clock, external scalers, and how workloads share a device."


def render_page(made: Backtest) -> str:
    """Return the page; equal backtests give equal text."""
    title = f"Backtest of {len(made.results)} workload{'s' if len(made.results) != 1 else ''}"
    choices = "".join(_choice(place) for place in range(len(made.tried)))
    body = "\n".join(
        (
            f"<h1>{title}</h1>",
            f'<p class="soft">{escape(_subtitle(made))}</p>',
            choices,
            _pick(made),
            *(_chosen(place, headline(made, name)) for place, name in enumerate(made.tried)),
            "<h2>Policies</h2>",
            policies(made),
            "<h2>Reserved by all workloads together</h2>",
            _fleet(made),
            "<h2>Workloads</h2>",
            *(_chosen(place, workloads(made, name)) for place, name in enumerate(made.tried)),
            "<h2>What each workload went through</h2>",
            _key(),
            *_drawn(made),
            "<h2>How to read it</h2>",
            _notes(made),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>\n{_resource('page.css')}{_choosing(len(made.tried))}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>\n{_resource('page.js')}</script>\n</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    return files("autoscaler.replay").joinpath(name).read_text(encoding="utf-8")


def _subtitle(made: Backtest) -> str:
    span = made.span
    length = format_duration(round(span.end - span.start))
    return f"{made.source}: {moment_text(span.start)} to {moment_text(span.end)} ({length}), replayed in a closed loop"


def _choice(place: int) -> str:
    checked = ' checked="checked"' if place == 0 else ""
    return f'<input class="choice" type="radio" name="policy" id="choice-{place}"{checked}/>'


def _pick(made: Backtest) -> str:
    if len(made.tried) < 2:
        return ""
    labels = (f'<label for="choice-{place}">{escape(name)}</label>' for place, name in enumerate(made.tried))
    return f'<div class="pick">{"".join(labels)}</div>'


def _choosing(count: int) -> str:
    """Return the CSS by which the chosen contender's parts are shown and all others are not."""
    shown = "".join(
        f"#choice-{place}:checked~.pick label[for=choice-{place}]"
        "{border-color:var(--request);color:var(--request);font-weight:600}"
        f"main:has(#choice-{place}:checked) .of:not(.of-{place}){{display:none}}"
        for place in range(count)
    )
    return f"{shown}\n"


def _chosen(place: int, content: str) -> str:
    return f'<div class="of of-{place}">{content}</div>'


def _fleet(made: Backtest) -> str:
    charts = []
    for resource in Resource:
        held = {
            name: _summed(result.outcome(name).reserved[resource] for result in made.results) for name in made.names
        }
        if not any(values.any() for values in held.values()):
            continue
        lines = {"demand": _summed(result.needed[resource] for result in made.results), **held}
        charts.append(_fleet_chart(made, resource, lines))
    return f'<div class="fleet">{"".join(charts)}</div>'


def _summed(parts: Iterable[Floats]) -> Floats:
    return np.asarray(np.sum(list(parts), axis=0), dtype=np.float64)


def _fleet_chart(made: Backtest, resource: Resource, lines: dict[str, Floats]) -> str:
    span = made.span
    is_dated = span.start >= EPOCH_SECONDS
    at = span.start + span.column_seconds * np.arange(FLEET_COLUMNS)
    across = at if is_dated else (at - span.start) / 3600.0
    series = [
        Series(
            name, list(zip(across.tolist(), (values / SCALE[resource]).tolist(), strict=True)), is_step=name != "demand"
        )
        for name, values in lines.items()
    ]
    unit = UNITS[resource]
    chart = line_chart(
        series,
        title=f"{NOUNS[resource]} requests, {unit}",
        unit=unit,
        x_unit=TIME if is_dated else "h",
        size=(640, 260),
    )
    return f'<div class="box">{chart}</div>'


def _key() -> str:
    samples = (
        ('<rect class="need" y="2" width="30" height="10"/>', "demand, mean"),
        ('<rect class="peak" y="2" width="30" height="10"/>', "demand, peak"),
        ('<path class="request" d="M0 6H30"/>', "request"),
        ('<path class="limit" d="M0 6H30"/>', "limit"),
        ('<path class="static" d="M0 6H30"/>', "request that is set (static)"),
        ('<rect class="lost" y="3" width="30" height="5"/>', "throttled"),
        ('<g class="oom"><path class="cross" d="M11 2l8 8m0 -8l-8 8"/></g>', "out-of-memory kill"),
    )
    shown = (f'<span><svg viewBox="0 0 30 12">{mark}</svg>{text}</span>' for mark, text in samples)
    return f'<div class="legend">{"".join(shown)}</div>'


def _drawn(made: Backtest) -> Iterator[str]:
    weight = [(-result.outcomes[0].measures.gpus, place) for place, result in enumerate(made.results)]
    chosen = sorted(place for _, place in sorted(weight)[:MOST_DRAWN])
    for place in chosen:
        yield _workload(made, place)
    if len(chosen) < len(made.results):
        text = f"Drawn are the {MOST_DRAWN} workloads that reserve the most; the table has all {len(made.results)}."
        yield f'<p class="soft">{text}</p>'


def _workload(made: Backtest, place: int) -> str:
    result = made.results[place]
    facts = f"{number(result.hours)} h in steps of {format_duration(result.step)}"
    if result.censored_hours:
        facts += f", {number(result.censored_hours)} h estimated from clipped use"
    panels = (_chosen(number_, _panels(result, result.outcome(name), name)) for number_, name in enumerate(made.tried))
    return (
        f'<section class="box workload" id="workload-{place}"><header><h3>{escape(result.name)}</h3>'
        f'<span class="soft">{facts}</span></header>{"".join(panels)}</section>'
    )


def _panels(result: Result, one: Outcome, name: str) -> str:
    static = result.outcomes[0]
    figures = []
    for resource in Resource:
        if resource is Resource.VRAM and not result.has_vram:
            continue
        label = f"{result.name}, {NOUNS[resource]}, {name}"
        panel = Panel(resource, result.strip, one.strip, static.began_with[2 * resource], label)
        caption = _caption(resource, one.measures, static.measures)
        figures.append(f"<figure><figcaption>{caption}</figcaption>{render(panel)}</figure>")
    return f'<div class="pair">{"".join(figures)}</div>'


def _caption(resource: Resource, one: Measures, static: Measures) -> str:
    if resource is Resource.COMPUTE:
        share = saved_share(static.compute.request, one.compute.request)
        return f"compute, TFLOPs: {percent(share)} saved, {percent(one.compute.throttled_share)} throttled"
    share = saved_share(static.vram.request, one.vram.request)
    return f"VRAM, GiB: {percent(share)} saved, {one.ooms} out-of-memory kill{'s' if one.ooms != 1 else ''}"


def _notes(made: Backtest) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in (CLOSED_LOOP, NOT_REPLAYED, *legend(made)) if line)
    return f'<ul class="notes soft">{items}</ul>'
