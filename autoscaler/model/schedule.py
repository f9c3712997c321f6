"""Rules by the clock: which one is in force, and when that changes next; pure.

A rule is active from its last `start` up to the next `end`; where both fall on one moment, `start` wins. Moments follow
the wall clock of the rule's IANA zone as Debian's cron does: a fixed time that the clock skips comes when the skip is
over, one that it shows twice comes the first time only; with `*` in minute or hour every minute that is shown counts.

Searching a moment costs some ten microseconds, so a workload's `Turn` is kept until the next moment that can change it,
and rules of equal times share one search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from autoscaler.model.config import Configuration, CronRule

NEVER: Final = math.inf
_ANCHOR_SECONDS: Final = 3 * 3600.0
"""Looking back starts this much earlier: around a change of the clock only looking forward finds every moment."""
_ENDS_SEARCHED: Final = 500
"""Ends that fall on a start change nothing; so many are passed over before the search is put off."""
_MINUTE: Final = 60.0

Times = tuple[str, str, str]
"""Start, end, zone: all that decides when a rule is active."""


class Phase(NamedTuple):
    """Whether times hold, since when (-inf: ever), and until when that stands (seconds since the epoch)."""

    active: bool
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Turn:
    """What a workload's rules say between two of their moments (seconds since the epoch).

    `rule` is in force `since` .. `until`; None: no rule is. `next_at`: when any of the rules next begins or ends, `inf`
    never.
    """

    rule: CronRule | None
    since: float
    until: float
    next_at: float


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """The turn of each configuration as of `now`; None where it has no rule that does anything."""

    now: float
    configs: tuple[Configuration, ...]
    turns: tuple[Turn | None, ...]


def active_rule(rules: Sequence[CronRule], now: float) -> CronRule | None:
    """Return the rule in force: of the active ones that of the highest priority, then the first."""
    turn = turn_of(rules, now)
    return None if turn is None else turn.rule


def next_transition(rules: Sequence[CronRule], now: float) -> float | None:
    """Return when a rule next begins or ends (seconds since the epoch), None if never."""
    turn = turn_of(rules, now)
    return None if turn is None or turn.next_at == NEVER else turn.next_at


def does_something(rule: CronRule) -> bool:
    """Tell whether a rule is enabled and names any figure."""
    figures = (*rule.requests, *rule.limits, rule.replicas)
    return rule.enable and any(figure is not None for figure in figures)


def turn_of(rules: Sequence[CronRule], now: float, known: dict[Times, Phase] | None = None) -> Turn | None:
    """Return what the rules say at `now`, None where none does anything; `known` phases of `now` are used and added."""
    known = {} if known is None else known
    chosen: tuple[CronRule, Phase] | None = None
    next_at, any_rule = NEVER, False
    for rule in rules:
        if not does_something(rule):
            continue
        any_rule = True
        times = rule.start, rule.end, rule.time_zone
        phase = known.get(times)
        if phase is None:
            phase = known[times] = phase_of(times, now)
        next_at = min(next_at, phase.until)
        if phase.active and (chosen is None or rule.priority > chosen[0].priority):
            chosen = rule, phase
    if not any_rule:
        return None
    if chosen is None:
        return Turn(None, -NEVER, next_at, next_at)
    return Turn(chosen[0], chosen[1].since, chosen[1].until, next_at)


def to_turns(configs: Sequence[Configuration], now: float, previous: Turns | None = None) -> Turns:
    """Return the turn of each configuration; one that is the same object as in `previous` keeps its own while it lasts.

    `previous` is of an earlier moment; where the clock was set back everything is searched anew.
    """
    kept: dict[int, Turn] = {}
    if previous is not None and previous.now <= now:
        pairs = zip(previous.configs, previous.turns, strict=True)
        kept = {id(config): turn for config, turn in pairs if turn is not None and now < turn.next_at}
    known: dict[Times, Phase] = {}
    turns = tuple(
        (kept.get(id(config)) or turn_of(config.cron_rules, now, known)) if config.cron_rules else None
        for config in configs
    )
    return Turns(now, tuple(configs), turns)


def phase_of(times: Times, now: float) -> Phase:
    """Return whether times hold at `now`, since when, and until when that stands."""
    start, end, zone_name = times
    zone = ZoneInfo(zone_name)
    started, ended = _last(start, zone, now), _last(end, zone, now)
    if started == -NEVER or started < ended:
        return Phase(active=False, since=ended, until=next(_after(start, zone, now), NEVER))
    return Phase(active=True, since=started, until=_end(times, zone, now))


def _end(times: Times, zone: ZoneInfo, now: float) -> float:
    """Return the first end that no start falls on; put off (a moment to look again) where that is far to seek."""
    end = NEVER
    for end in islice(_after(times[1], zone, now), _ENDS_SEARCHED):
        if next(_after(times[0], zone, end - _MINUTE), NEVER) != end:
            return end
    return end


def _last(expression: str, zone: ZoneInfo, now: float) -> float:
    """Return the last moment at or before `now`, -inf if there was none."""
    before = datetime.fromtimestamp(math.floor(now - _ANCHOR_SECONDS), UTC).astimezone(zone)
    anchor = next(CronSim(expression, before, reverse=True), None)
    if anchor is None:
        return -NEVER
    last = anchor.timestamp()
    for moment in CronSim(expression, anchor):
        at = moment.timestamp()
        if at > now:
            break
        last = at
    return last


def _after(expression: str, zone: ZoneInfo, now: float) -> Iterator[float]:
    """Yield the moments after `now`; what a repeated hour would name again lies in the past and is left out."""
    for moment in CronSim(expression, datetime.fromtimestamp(math.floor(now), UTC).astimezone(zone)):
        at = moment.timestamp()
        if at > now:
            yield at
