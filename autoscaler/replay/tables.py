"""The numbers of a backtest as parts of a page: headline cards, the table of policies, the table of workloads.

Neighbour: `page` arranges them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from autoscaler.replay.backtest import Backtest, Result
from autoscaler.replay.contend import STATIC
from autoscaler.replay.measure import Measures, saved_share
from autoscaler.replay.printed import NAMES, conclusion, number, percent

HARMFUL_RATIO: Final = 0.01
"""More of the demand than this throttled is shown as harm."""


def headline(made: Backtest, name: str) -> str:
    """Return what a contender saves and what it costs, as cards and one sentence."""
    one, static = made.total(name), made.static
    models = " or ".join(sorted({result.card.model for result in made.results}))
    cards = [_reserved_card("Compute reserved", static.compute.request, one.compute.request, "TFLOP-hours")]
    if static.vram.request > 0:
        cards.append(_reserved_card("VRAM reserved", static.vram.request, one.vram.request, "GiB-hours"))
    cards.append(_reserved_card("GPU-equivalents held", static.gpus, one.gpus, f"of {escape(models)}, packing aside"))
    harm = "bad" if one.compute.throttled_share > HARMFUL_RATIO else ""
    cards.append(
        _card(
            "Compute throttled",
            percent(one.compute.throttled_share),
            f"set: {percent(static.compute.throttled_share)}; {percent(one.compute.under_share)} above the request",
            harm,
        )
    )
    if static.vram.request > 0:
        tone = "bad" if one.ooms > static.ooms else ""
        per = f"{number(one.ooms_per_1000_hours)} per 1,000 hours; set: {static.ooms}"
        cards.append(_card("Out-of-memory kills", f"{one.ooms}", per, tone))
    cards.append(
        _card(
            "Changes a day",
            number(one.changes_per_day),
            f"of a request, per workload; limits: {number(one.limit_changes_per_day)}",
        )
    )
    sentence = f"<strong>{escape(name)}</strong>: {escape(conclusion(made, name))}."
    return f'<div class="cards">{"".join(cards)}</div><p>{sentence}</p>'


def _reserved_card(what: str, before: float, after: float, unit: str) -> str:
    share = saved_share(before, after)
    tone = "good" if share > 0 else "bad"
    text = f"{'&#8722;' if share >= 0 else '+'}{100 * abs(share):.0f} %"
    return _card(what, text, f"{number(before)} &#8594; {number(after)} {unit}", tone)


def _card(what: str, big: str, small: str, tone: str = "") -> str:
    return (
        f'<div class="card"><div class="what">{what}</div><div class="big {tone}">{big}</div>'
        f'<div class="small">{small}</div></div>'
    )


_GROUPS: Final = (("Compute", 5), ("VRAM", 4), ("Both", 2))
_TITLES: Final = (
    ("TFLOP·h", "compute requests times hours"),
    ("saved", "against what is set"),
    ("slack", "of the requests, never used"),
    ("under", "time with more demand than the request"),
    ("throttled", "demand above the limit"),
    ("GiB·h", "VRAM requests times hours"),
    ("saved", "against what is set"),
    ("slack", "of the requests, never used"),
    ("OOM /1000 h", "out-of-memory kills per 1,000 workload-hours"),
    ("changes /day", "changes of a request, per workload"),
    ("GPUs", "requests as shares of a GPU, packing aside"),
)


def _head(first: str) -> str:
    titles = "".join(f'<th scope="col" title="{why}">{title}</th>' for title, why in _TITLES)
    groups = "".join(f'<th class="group" colspan="{width}">{name}</th>' for name, width in _GROUPS)
    return f'<thead><tr><th></th>{groups}</tr><tr><th scope="col">{first}</th>{titles}</tr></thead>'


def _cells(one: Measures, static: Measures) -> Iterator[str]:
    has_vram = static.vram.request > 0
    compute, vram = one.compute, one.vram
    yield _cell(compute.request, number(compute.request))
    yield _saved(static.compute.request, compute.request, is_base=one is static)
    yield _cell(compute.slack_share, percent(compute.slack_share))
    yield _cell(compute.under_share, percent(compute.under_share))
    tone = "bad" if compute.throttled_share > HARMFUL_RATIO else ""
    yield _cell(compute.throttled_share, percent(compute.throttled_share), tone)
    yield _cell(vram.request, number(vram.request) if has_vram else "-")
    yield _saved(static.vram.request, vram.request, is_base=one is static)
    yield _cell(vram.slack_share, percent(vram.slack_share) if has_vram else "-")
    yield _cell(one.ooms_per_1000_hours, number(one.ooms_per_1000_hours), "bad" if one.ooms > static.ooms else "")
    yield _cell(one.changes_per_day, number(one.changes_per_day))
    yield _cell(one.gpus, f"{one.gpus:.2f}")


def _cell(value: float, text: str, tone: str = "") -> str:
    return f'<td class="{tone}" data-value="{value:.6g}">{text}</td>'


def _saved(base: float, now: float, *, is_base: bool) -> str:
    share = saved_share(base, now)
    if is_base or math.isnan(share):
        return '<td data-value="0"></td>'
    bar = f' style="--share:{100 * min(share, 1.0):.1f}%"' if share > 0 else ""
    tone = "bar" if share >= 0 else "bad"
    return f'<td class="{tone}" data-value="{share:.6g}"{bar}>{percent(share)}</td>'


def policies(made: Backtest) -> str:
    """Return the table of all contenders over all workloads."""
    static = made.static
    rows = (
        f'<tr><td title="{escape(NAMES.get(name, "what-if"))}"><strong>{escape(name)}</strong></td>'
        f"{''.join(_cells(static if name == STATIC else made.total(name), static))}</tr>"
        for name in made.names
    )
    return f'<div class="box scroll"><table>{_head("policy")}<tbody>{"".join(rows)}</tbody></table></div>'


def workloads(made: Backtest, name: str) -> str:
    """Return the sortable table of all workloads with one contender."""
    rows = "".join(
        f'<tr><td data-value="{escape(result.name)}">{_linked(result, place)}</td>'
        f"{''.join(_cells(result.outcome(name).measures, result.outcomes[0].measures))}</tr>"
        for place, result in enumerate(made.results)
    )
    table = f'<table class="sortable">{_head("workload")}<tbody>{rows}</tbody></table>'
    return f'<p class="soft">with {escape(name)}; a click on a title sorts</p><div class="box scroll">{table}</div>'


def _linked(result: Result, place: int) -> str:
    return f'<a href="#workload-{place}">{escape(result.name)}</a>'
